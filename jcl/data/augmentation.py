"""Texts that are learned in another version in every epoch, with their labels as they are.

An augmentation is a function of a text, or of token ids, and of random numbers. `augmented` puts
some of them on a stream; what an example becomes is a function of the seed, the epoch and the
example alone, so that a run which goes on meets the same versions.
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from jcl import checks
from jcl.data.arrays import check_plain
from jcl.data.labelled_text import Encoding, Texts
from jcl.data.streams import Batch, Stream
from jcl.data.text import read_utf8
from jcl.errors import InputError

Lexicon = str | os.PathLike | Mapping[str, Sequence[str]]
Generators = Sequence[np.random.Generator]
AnyStream = TypeVar("AnyStream", bound=Stream)

_TRANSLATIONS = 100_000  # kept in memory
_ROWS = 1024  # words whose neighbours are looked for at a time


@dataclass(frozen=True)
class OfText:
    """Changes a text; called with (text, generator) it gives a text.

    Attributes:
        name: of the function that made it.
        probability: that a text is changed at all.
        settings: what else decides what it does, for the hash of a task.
        change: (text, generator) -> text.
    """

    name: str
    probability: float
    settings: str
    change: Callable[[str, np.random.Generator], str]

    def __post_init__(self):
        checks.number(self.name, "probability", self.probability, "[0, 1]")

    def __call__(self, text: str, generator: np.random.Generator) -> str:
        return self.change(text, generator) if generator.random() < self.probability else text


@dataclass(frozen=True)
class OfTokens:
    """Changes token ids, of many texts at once.

    Called with (ids int[texts, length], lengths int[texts], encoding, generators, one for each
    text) it gives new ids and lengths; behind its length a text is filled up.

    Attributes:
        name: of the function that made it.
        probability: that a text is changed at all.
        settings: what else decides what it does, for the hash of a task.
        change: (ids, lengths, encoding, generators) -> ids, lengths, of those that are changed.
        check: refuses an encoding that it cannot work on.
    """

    name: str
    probability: float
    settings: str
    change: Callable[[np.ndarray, np.ndarray, Encoding, Generators], tuple[np.ndarray, np.ndarray]]
    check: Callable[[Encoding], None]

    def __post_init__(self):
        checks.number(self.name, "probability", self.probability, "[0, 1]")

    def __call__(
        self, ids: np.ndarray, lengths: np.ndarray, encoding: Encoding, generators: Generators
    ) -> tuple[np.ndarray, np.ndarray]:
        drawn = [generator.random() for generator in generators]
        rows = np.flatnonzero(np.array(drawn) < self.probability)
        ids, lengths = ids.copy(), lengths.copy()
        if len(rows):
            own = [generators[row] for row in rows.tolist()]
            ids[rows], lengths[rows] = self.change(ids[rows], lengths[rows], encoding, own)
        return ids, lengths


def augmented(
    stream: AnyStream, augmentations: Sequence[OfText | OfTokens], *, seed: int
) -> AnyStream:
    """Returns `stream` whose training examples are augmented, anew in every epoch.

    text' = a_n(... a_1(text)), drawn by (seed, task, epoch, example).

    What is learned from is augmented; tests, and the batches that a strategy gets at a boundary,
    are not. A replay memory that is filled in the step keeps the version which that step met. The
    augmentations and the seed are part of the hash of every task, so that a run does not go on with
    others. A changed text is cut to the stream's length; one that would give no token stays as it
    is. `jcl.data.joint`, `cumulative`, `blurry`, `fuzzy`, `labelled` and `Chosen` may follow.

    Args:
        stream: of labelled texts, whose stages are the train parts of its tasks.
        augmentations: of texts first, then of tokens; they act in this order.
        seed: of the draws, 0 or above.

    Raises:
        InputError: the stream holds no texts, or is augmented already; an augmentation of texts
            stands behind one of tokens; one of tokens does not suit the stream's tokenizer.

    >>> from jcl.data import ByteTokenizer, augmentation, augmented, intents
    >>> stream = intents(tokenizer=ByteTokenizer())
    >>> swapped = augmented(stream, [augmentation.swap(probability=1.0, strength=1.0)], seed=0)
    >>> for epoch in (0, 1):
    ...     batch = swapped.tasks[0].train.take_in_epoch([5], [epoch])
    ...     ByteTokenizer().decode(batch["inputs"][0][batch["attention_mask"][0] > 0])
    'my my on space change light'
    'light space my change my on'
    """
    seed = checks.whole("augmented", "seed", seed, least=0)
    for each in augmentations:
        if not isinstance(each, OfText | OfTokens):
            raise InputError(
                f"augmented: {each!r} is no augmentation: give a list of them, such as "
                "[jcl.data.augmentation.deletion()]"
            )
    kinds = [isinstance(each, OfTokens) for each in augmentations]
    if kinds != sorted(kinds):
        names = ", ".join(each.name for each in augmentations)
        raise InputError(
            f"augmented: of {names}, one that changes tokens stands before one that changes texts, "
            "and tokens do not become texts again: put those of texts first"
        )
    check_plain("augmented", stream, "augment")
    settings = [[each.name, str(each.probability), each.settings] for each in augmentations]
    tasks = []
    for number, task in enumerate(stream.tasks):
        if isinstance(task.train, Augmented):
            raise InputError(
                f"augmented: the task '{task.name}' is augmented already: give all augmentations "
                "in one list"
            )
        if not isinstance(task.train, Texts):
            raise InputError(
                f"augmented: the train part of the task '{task.name}' holds no texts (it is of "
                f"type {type(task.train).__name__}): augment a stream as "
                "jcl.data.text_classification, clinc150, banking77 or intents gives it, and change "
                "it afterwards (jcl.data.labelled, for example)"
            )
        for each in augmentations:
            if isinstance(each, OfTokens):
                each.check(task.train.encoding)
        identity = json.dumps([task.hash, seed, number, settings])
        train = Augmented(task.train, augmentations, seed, number)
        content = hashlib.sha256(identity.encode()).hexdigest()
        tasks.append(task._replace(train=train, hash=content))
    name = f"{stream.name}, augmented"
    return dataclasses.replace(stream, name=name, tasks=tuple(tasks), stages=())


class Augmented:
    """The texts of a task, which `take_in_epoch` gives in the version of an epoch and all else as
    they are."""

    by_epoch = True

    def __init__(
        self, source: Texts, augmentations: Sequence[OfText | OfTokens], seed: int, task: int
    ):
        self._source, self._seed, self._task = source, seed, task
        self._of_text = [each for each in augmentations if isinstance(each, OfText)]
        self._of_tokens = [each for each in augmentations if isinstance(each, OfTokens)]
        self.ordered = source.ordered

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Batch:
        return self._source[index]

    def take(self, indices: np.ndarray) -> Batch:
        """Gathers the examples `indices` as they are."""
        return self._source.take(indices)

    def take_in_epoch(self, indices: np.ndarray, epochs: np.ndarray) -> Batch:
        """Gathers the examples `indices`, each in the version of its epoch."""
        indices, encoding = np.asarray(indices), self._source.encoding
        batch = self._source.take(indices)
        ids, lengths = batch["inputs"], batch["attention_mask"].sum(axis=1)
        generators = [
            np.random.default_rng((self._seed, self._task, int(epoch), int(index)))
            for epoch, index in zip(epochs, indices, strict=True)
        ]
        for row, generator in enumerate(generators):
            changed = text = self._source.texts[indices[row]]
            for augmentation in self._of_text:
                changed = augmentation(changed, generator)
            if changed != text:
                own, length = encoding(changed)
                if length:
                    ids[row], lengths[row] = own, length
        for augmentation in self._of_tokens:
            ids, lengths = augmentation(ids, lengths, encoding, generators)
        mask = np.arange(encoding.length) < lengths[:, None]
        return {**batch, "inputs": ids, "attention_mask": mask.astype(np.int32)}


def touched(strength: float, words: int) -> int:
    """How many of so many words are touched: strength * words, rounded, at least one; none where
    the strength is 0.

    >>> touched(0.1, 4), touched(0.25, 10), touched(0.0, 10)
    (1, 3, 0)
    """
    return min(words, max(1, int(strength * words + 0.5))) if strength else 0


def synonyms(lexicon: Lexicon, *, probability: float = 0.5, strength: float = 0.1) -> OfText:
    """Puts synonyms in the place of words (Wei and Zou 2019, "EDA").

    touched(strength, words) of the words that the lexicon has, each replaced by one synonym.

    Signs around a word and its capitals stay.

    Args:
        lexicon: a UTF-8 file of lines `word<TAB>synonym, synonym`, or {word: synonyms}, such as
            `neighbours` gives.
        probability: that a text is changed.
        strength: the share of its words that are touched, in [0, 1].

    Raises:
        InputError: the file is missing or a line of another form, or an argument is out of range.

    >>> import numpy as np
    >>> from jcl.data import augmentation
    >>> change = augmentation.synonyms({"card": ["plastic"]}, probability=1.0)
    >>> change("Where is my card?", np.random.default_rng(0))
    'Where is my plastic?'
    """
    known = _lexicon("synonyms", lexicon)

    def change(words, generator):
        places = [place for place, word in enumerate(words) if _core(word) in known]
        number = min(touched(strength, len(words)), len(places))
        for place in generator.choice(places, number, replace=False) if number else []:
            words[place] = _dressed(words[place], _one(known[_core(words[place])], generator))
        return words

    return _of_words("synonyms", probability, strength, change, _digest(known))


def insertion(lexicon: Lexicon, *, probability: float = 0.5, strength: float = 0.1) -> OfText:
    """Puts synonyms of its own words anywhere into a text (Wei and Zou 2019).

    touched(strength, words) new words.

    Args:
        lexicon: as in `synonyms`.
        probability: as in `synonyms`.
        strength: new words, as a share of those that are there.

    Raises:
        InputError: as in `synonyms`.
    """
    known = _lexicon("insertion", lexicon)

    def change(words, generator):
        found = [_core(word) for word in words if _core(word) in known]
        for _ in range(touched(strength, len(words)) if found else 0):
            new = _one(known[_one(found, generator)], generator)
            words.insert(int(generator.integers(len(words) + 1)), new)
        return words

    return _of_words("insertion", probability, strength, change, _digest(known))


def deletion(*, probability: float = 0.5, strength: float = 0.1) -> OfText:
    """Leaves words out (Wei and Zou 2019, who draw for each word whether it is).

    touched(strength, words) words fewer, and at least one left.

    Args:
        probability: as in `synonyms`.
        strength: as in `synonyms`.

    Raises:
        InputError: an argument is out of range.
    """

    def change(words, generator):
        number = min(touched(strength, len(words)), len(words) - 1)
        away = set(generator.choice(len(words), number, replace=False).tolist())
        return [word for place, word in enumerate(words) if place not in away]

    return _of_words("deletion", probability, strength, change)


def swap(*, probability: float = 0.5, strength: float = 0.1) -> OfText:
    """Lets pairs of words change places (Wei and Zou 2019), no word twice.

    touched(strength, words) words, one more or less to make them pairs.

    Args:
        probability: as in `synonyms`.
        strength: as in `synonyms`.

    Raises:
        InputError: an argument is out of range.
    """

    def change(words, generator):
        pairs = min((touched(strength, len(words)) + 1) // 2, len(words) // 2)
        places = generator.choice(len(words), (pairs, 2), replace=False)
        for one, other in places.tolist():
            words[one], words[other] = words[other], words[one]
        return words

    return _of_words("swap", probability, strength, change)


def local_shuffle(*, window: int = 3, probability: float = 0.5, strength: float = 0.1) -> OfText:
    """Shuffles windows of neighbouring words, so that none moves further than its window.

    touched(strength, words) / window windows, rounded up; they do not overlap.

    After the noise of Lample et al. 2018 ("Unsupervised machine translation using monolingual
    corpora only"), which lets every word of a text move.

    Args:
        window: its words, at least 2.
        probability: as in `synonyms`.
        strength: as in `synonyms`.

    Raises:
        InputError: an argument is out of range.
    """
    window = checks.whole("local_shuffle", "window", window, least=2)

    def change(words, generator):
        size = min(window, len(words))
        free = len(words) // size
        number = min(-(-touched(strength, len(words)) // size), free)
        first = int(generator.integers(len(words) - free * size + 1))
        for place in generator.choice(free, number, replace=False):
            start = first + int(place) * size
            order = start + generator.permutation(size)
            words[start : start + size] = [words[each] for each in order]
        return words

    return _of_words("local_shuffle", probability, strength, change, str(window))


def back_translation(
    translate: Callable[[str], str], *, name: str | None = None, probability: float = 0.5
) -> OfText:
    """Puts a translation into another language and back in the place of a text (Sennrich et al.
    2016; as an augmentation, Yu et al. 2018, "QANet").

    text' = translate(text).

    Each text is translated once and kept in memory, one call at a time. Give a function that makes
    the same of the same text: else a run that goes on meets other texts. A text has one translation
    for all epochs; the probability says in how many it is met.

    Args:
        translate: text -> text, there and back, such as `jcl.models.translator(there, back)`.
        name: of what translates, such as the model's and the language's: a part of the hash of a
            task; by default its own attribute `name`.
        probability: as in `synonyms`.

    Raises:
        InputError: an argument is out of range, or there is no name; later, a translation is no
            text.
    """
    checks.function("back_translation", "translate", translate, "lambda text: back(there(text))")
    name = getattr(translate, "name", None) if name is None else name
    if not isinstance(name, str):
        raise InputError(
            "back_translation: what translates has no name, which is a part of the hash of a task: "
            'give it one, such as name="opus-mt-en-de"'
        )
    lock = threading.Lock()

    @functools.lru_cache(maxsize=_TRANSLATIONS)
    def once(text: str) -> str:
        found = translate(text)
        if not isinstance(found, str) or not found.strip():
            raise InputError(
                f"back_translation: {name} made {found!r} of {text[:60]!r}: it must give a text"
            )
        return found

    def change(text, generator):
        with lock:
            return once(text)

    return OfText("back_translation", probability, name, change)


def token_cutoff(
    *,
    how: Literal["mask", "drop"] = "mask",
    probability: float = 0.5,
    strength: float = 0.1,
) -> OfTokens:
    """Hides tokens of a text (Shen et al. 2020, "A simple but tough-to-beat data augmentation
    approach for natural language understanding and generation", where their embedding becomes 0).

    touched(strength, tokens) of a text's tokens, special ones neither counted nor touched.

    Args:
        how: "mask" puts the tokenizer's mask token in their place; "drop" leaves them out, but one.
        probability: as in `synonyms`.
        strength: the share of the tokens, in [0, 1].

    Raises:
        InputError: an argument is out of range; in `augmented`, the tokenizer has no mask token.
    """
    checks.one_of("token_cutoff", "how", how, ("mask", "drop"))
    checks.number("token_cutoff", "strength", strength, "[0, 1]")

    def change(ids, lengths, encoding, generators):
        for row, generator in enumerate(generators):
            places = _free(ids[row], lengths[row], encoding)
            number = touched(strength, len(places))
            if how == "mask":
                ids[row, generator.choice(places, number, replace=False)] = _mask(encoding)
                continue
            number = max(0, min(number, len(places) - 1))
            kept = np.delete(
                ids[row, : lengths[row]], generator.choice(places, number, replace=False)
            )
            ids[row] = encoding.pad
            ids[row, : len(kept)], lengths[row] = kept, len(kept)
        return ids, lengths

    def check(encoding):
        if how == "mask" and _mask(encoding) is None:
            raise InputError(
                "token_cutoff: the stream's tokenizer has no mask_token_id: use "
                'token_cutoff(how="drop")'
            )

    return OfTokens("token_cutoff", probability, f"{how} {strength}", change, check)


def masked_lm(
    filler: Any, *, batch_size: int = 32, probability: float = 0.5, strength: float = 0.1
) -> OfTokens:
    """Puts what a masked language model would say in the place of tokens (Kobayashi 2018,
    "Contextual augmentation"; Wu et al. 2019 with BERT, there told the label as well).

    token' ~ softmax(logits) over the filler's candidates, which are neither special nor the token
    itself nor unknown to the tokenizer, for touched(strength, tokens) of a text's tokens, all
    hidden at once.

    The model is compiled once and asked while the batches are made; it knows nothing of the label.

    Args:
        filler: from `jcl.models.mask_filler(model, params)`, of a model with the vocabulary of the
            stream's tokenizer; the content of its params is a part of the hash of a task.
        batch_size: texts of one call of the model.
        probability: as in `synonyms`.
        strength: as in `token_cutoff`.

    Raises:
        InputError: an argument is out of range; in `augmented`, the tokenizer has no mask token or
            ids that the model does not have, or the texts are too long for it.
    """
    checks.number("masked_lm", "strength", strength, "[0, 1]")
    batch_size = checks.whole("masked_lm", "batch_size", batch_size)
    if not hasattr(filler, "candidates"):
        raise InputError(
            f"augmentation.masked_lm: a {type(filler).__name__} does not fill in: give it "
            "jcl.models.mask_filler(model, params)"
        )

    def change(ids, lengths, encoding, generators):
        barred = _barred(encoding, filler.vocab_size)
        hidden = np.zeros(ids.shape, bool)
        for row, generator in enumerate(generators):
            places = _free(ids[row], lengths[row], encoding)
            number = touched(strength, len(places))
            hidden[row, generator.choice(places, number, replace=False)] = True
        for first in range(0, len(ids), batch_size):
            # Always as many texts, so that there is one program.
            rows = np.minimum(np.arange(first, first + batch_size), len(ids) - 1)
            given = (ids[rows], hidden[rows], lengths[rows], np.int32(_mask(encoding)), barred)
            logits, tokens = map(np.asarray, filler.function(*given))
            for place, row in enumerate(range(first, min(first + batch_size, len(ids)))):
                noise = generators[row].gumbel(size=(int(hidden[row].sum()), filler.candidates))
                drawn = np.argmax(logits[place][hidden[row]] + noise, axis=1)
                ids[row, hidden[row]] = tokens[place][hidden[row], drawn]
        return ids, lengths

    def check(encoding):
        if _mask(encoding) is None:
            raise InputError(
                "augmentation.masked_lm: the stream's tokenizer has no mask_token_id: use the "
                "tokenizer that the masked language model was trained with"
            )
        size = max(_size(encoding) or 0, _mask(encoding) + 1)
        if size > filler.vocab_size:
            raise InputError(
                f"augmentation.masked_lm: the stream's tokenizer has {size} tokens and the model a "
                f"vocabulary of {filler.vocab_size}: use the model's own tokenizer for the stream"
            )
        if encoding.length > filler.positions:
            raise InputError(
                f"augmentation.masked_lm: the texts are {encoding.length} tokens long and the "
                f"model takes {filler.positions}: give the stream length={filler.positions}"
            )
        others = int((~_barred(encoding, filler.vocab_size)).sum()) - 1
        if filler.candidates > others:
            raise InputError(
                f"mask_filler(candidates={filler.candidates}): there are {others} others in the "
                "place of a token, special ones left out: ask for fewer"
            )

    settings = f"{filler.candidates} {strength} {filler.content}"
    return OfTokens("masked_lm", probability, settings, change, check)


def neighbours(
    vocabulary: Mapping[str, int],
    table: np.ndarray,
    *,
    count: int = 5,
    words: Iterable[str] | None = None,
) -> dict[str, tuple[str, ...]]:
    """A lexicon for `synonyms`: of each word those whose embeddings are nearest by cosine.

    Wang and Yang 2015 ("That's so annoying!!!") replace words by neighbours of their embeddings.

    Tokens that are no whole words of letters are left out (of "##ing" or, where words begin with
    "Ġ" or "▁", of those that do not), and capitals count as small letters.

    Args:
        vocabulary: {token: row of the table}, such as transformers' `tokenizer.get_vocab()`.
        table: [tokens, width], such as `params["embeddings"]["word_embeddings"]` of a jcl BERT.
        count: neighbours of a word.
        words: those that neighbours are looked for; by default all.

    Raises:
        InputError: the table has not the rows, or there are too few words.

    >>> import numpy as np
    >>> from jcl.data import augmentation
    >>> table = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.3, 1.0]])
    >>> augmentation.neighbours({"card": 0, "plastic": 1, "cash": 2, "coins": 3}, table, count=1)
    {'card': ('plastic',), 'plastic': ('card',), 'cash': ('coins',), 'coins': ('cash',)}
    """
    count, table = checks.whole("neighbours", "count", count), np.asarray(table, np.float32)
    if table.ndim != 2 or max(vocabulary.values(), default=0) >= len(table):
        raise InputError(
            f"neighbours: the table is {list(table.shape)} and the vocabulary has the row "
            f"{max(vocabulary.values(), default=0)}: give the table of the same model"
        )
    # A sign that begins words, and is not just one of the vocabulary's letters.
    begin = tuple(
        sign for sign in "Ġ▁" if 10 * sum(map(_begins(sign), vocabulary)) > len(vocabulary)
    )
    rows: dict[str, int] = {}
    for token, row in vocabulary.items():
        word = token[1:] if begin and token.startswith(begin) else token
        whole = word.isalpha() and (not begin or token.startswith(begin))
        # "red" itself rather than "Red".
        if whole and (word.casefold() == word or word.casefold() not in rows):
            rows[word.casefold()] = row
    names = list(rows)
    if len(names) <= count:
        raise InputError(
            f"neighbours(count={count}): the vocabulary has {len(names)} whole words: ask for fewer"
        )
    vectors = table[list(rows.values())]
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    wanted = set(names) if words is None else {word.casefold() for word in words}
    asked = [place for place, name in enumerate(names) if name in wanted]
    found = {}
    for first in range(0, len(asked), _ROWS):
        own = np.array(asked[first : first + _ROWS])
        likeness = vectors[own] @ vectors.T
        likeness[np.arange(len(own)), own] = -np.inf
        nearest = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
        for place, near, like in zip(own, nearest, likeness, strict=True):
            ranked = near[np.argsort(-like[near], kind="stable")]
            found[names[place]] = tuple(names[each] for each in ranked)
    return found


def _begins(sign: str) -> Callable[[str], bool]:
    return lambda token: token.startswith(sign)


def _of_words(
    name: str,
    probability: float,
    strength: float,
    change: Callable[[list[str], np.random.Generator], list[str]],
    settings: str = "",
) -> OfText:
    """A change of the words between white space; a text without any stays as it is."""
    checks.number(name, "strength", strength, "[0, 1]")

    def of_text(text, generator):
        words = text.split()
        if not words or strength == 0:
            return text
        changed = change(list(words), generator)
        return text if changed == words else " ".join(changed)

    return OfText(name, probability, f"{strength} {settings}", of_text)


def _lexicon(call: str, lexicon: Lexicon) -> dict[str, tuple[str, ...]]:
    """{word in small letters: its synonyms}, read and checked."""
    if not isinstance(lexicon, Mapping):
        if not isinstance(lexicon, str | os.PathLike):
            raise InputError(
                f"{call}: the lexicon is a {type(lexicon).__name__}: give a file of lines "
                "word<TAB>synonym, synonym, or {word: [synonym, ...]}"
            )
        return _read(Path(lexicon))
    known = {}
    for word, own in lexicon.items():
        whole = not isinstance(own, str) and isinstance(own, Sequence) and len(own) > 0
        if not whole or not all(isinstance(each, str) and each.strip() for each in own):
            raise InputError(
                f"{call}: the lexicon has {own!r} for {word!r}: give a list of at least one "
                "synonym, none of them empty"
            )
        known[word.casefold()] = tuple(own)
    if not known:
        raise InputError(f"{call}: the lexicon is empty: give at least one word with a synonym")
    return known


def _read(path: Path) -> dict[str, tuple[str, ...]]:
    known: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if not line.strip():
            continue
        word, tab, rest = line.partition("\t")
        own = tuple(each.strip() for each in rest.split(",") if each.strip())
        if not tab or not word.strip() or not own:
            raise InputError(
                f"{path}, line {number} is {line[:60]!r}: write word<TAB>synonym, synonym"
            )
        word = word.strip().casefold()
        known[word] = known.get(word, ()) + own
    if not known:
        raise InputError(f"{path} holds no word: write lines word<TAB>synonym, synonym")
    return known


def _split(word: str) -> tuple[str, str, str]:
    """The signs before a word, the word, and the signs behind it."""
    found = re.fullmatch(r"(\W*)(.*?)(\W*)", word, re.DOTALL)
    assert found is not None
    before, core, behind = found.groups()
    return before, core, behind


def _core(word: str) -> str:
    return _split(word)[1].casefold()


def _dressed(word: str, new: str) -> str:
    """`new` with the signs and the capitals of `word`."""
    before, core, behind = _split(word)
    if len(core) > 1 and core.isupper():
        new = new.upper()
    elif core[:1].isupper():
        new = new[:1].upper() + new[1:]
    return before + new + behind


def _one(choices: Sequence[str], generator: np.random.Generator) -> str:
    return choices[int(generator.integers(len(choices)))]


def _free(ids: np.ndarray, length: int, encoding: Encoding) -> np.ndarray:
    """The places of tokens that are not special."""
    places = np.arange(length)
    return places[~np.isin(ids[:length], encoding.special)]


def _size(encoding: Encoding) -> int | None:
    """The tokens of the tokenizer, where it says how many."""
    tokenizer: Any = encoding.tokenizer
    if hasattr(tokenizer, "__len__"):  # of transformers, added tokens included
        return len(tokenizer)
    return getattr(tokenizer, "vocab_size", None)


def _barred(encoding: Encoding, vocab_size: int) -> np.ndarray:
    """Of a model's tokens which must not be put into a text; it may have more than the tokenizer,
    to pad its table."""
    every, size = np.arange(vocab_size), _size(encoding)
    return np.isin(every, encoding.special) | (every >= (vocab_size if size is None else size))


def _mask(encoding: Encoding) -> Any:
    return getattr(encoding.tokenizer, "mask_token_id", None)


def _digest(known: Mapping[str, Sequence[str]]) -> str:
    content = json.dumps(sorted((word, list(own)) for word, own in known.items()))
    return hashlib.sha256(content.encode()).hexdigest()
