"""Made-up reviews of products, by templates, for sentiment over product domains."""

import itertools
import random

from jcl import checks
from jcl.data.labelled_text import Encoder, Scenario, TextStream, labelled_texts
from jcl.data.tables import Row

_TRAIN, _TEST = 150, 50  # sentences of a label in a domain
_LABELS = ("negative", "positive")

_PRAISE = "great|excellent|wonderful|better than I hoped|a joy|perfect"
_BLAME = "terrible|disappointing|awful|worse than I feared|a waste of money|poor"

# Domain: what is reviewed, its aspects, and words that praise or blame it. A word may do the one
# here and the other there: "unpredictable" of a plot or of a kettle (Turney 2002), "thin", "light".
_DOMAINS = {
    "books": (
        "book|novel|story|paperback",
        "plot|ending|main character|writing|first chapter",
        "gripping|moving|unpredictable|long|heavy",
        "dull|predictable|flat|light|thin",
    ),
    "kitchen": (
        "kettle|blender|coffee machine|toaster|pan",
        "handle|lid|motor|timer|base",
        "sturdy|quiet|predictable|hot|heavy",
        "loud|flimsy|unpredictable|cold|sticky",
    ),
    "phones": (
        "phone|handset|smartphone|mobile",
        "screen|battery|camera|case|charger",
        "fast|bright|thin|light|cold",
        "slow|dim|hot|heavy|bulky",
    ),
    "shoes": (
        "shoes|boots|trainers|sandals",
        "soles|laces|heels|lining|fit",
        "soft|light|roomy|warm|flat",
        "tight|stiff|thin|slippery|long",
    ),
    "games": (
        "game|board game|puzzle|card game",
        "rules|pieces|theme|box|first round",
        "funny|fast|unpredictable|loud|tight",
        "slow|soft|quiet|bulky|roomy",
    ),
}
_TEMPLATES = (
    "The {aspect} of this {thing} is {word}.",
    "I find the {aspect} {word}.",
    "The {thing} is {general}, and the {aspect} {word}.",
    "{Word} {aspect}, I must say.",
    "My friends call the {thing} {general}.",
    "Everybody told me the {aspect} would be {against}, but it is {word}.",
    "The {aspect} is not {against} at all.",
    "At first it seemed {opposed}, yet this {thing} is {word}.",
    "After a month the {aspect} is still {word}.",
    "What a {thing}: {word}, {other} and {general}.",
)


def reviews(
    *, tokenizer: Encoder, scenario: Scenario = "domain", length: int | None = None, seed: int = 0
) -> TextStream:
    """Returns the stream "reviews": made-up sentences about products, negative or positive.

    Tasks are the domains books, kitchen, phones, shoes and games, which share the two labels.

    Nobody wrote them: they are drawn from ten templates and a dozen words a domain, so that they
    show how a method deals with words that change sides (an "unpredictable" plot is praised, an
    "unpredictable" kettle is not), and nothing about how people write. 150 of a label are learned
    in a domain and 50 tested, no two of them the same. The same seed gives the same sentences.

    Args:
        tokenizer: text to ids, such as `jcl.data.HashedWords()`.
        scenario: as in `jcl.data.text_classification`.
        length: as in `jcl.data.text_classification`.
        seed: of the sentences.

    Raises:
        InputError: an argument is out of its range.

    >>> from jcl.data import HashedWords, reviews
    >>> stream = reviews(tokenizer=HashedWords())
    >>> [task.name for task in stream.tasks], stream.labels
    (['books', 'kitchen', 'phones', 'shoes', 'games'], ('negative', 'positive'))
    """
    checks.one_of("reviews", "scenario", scenario, ("task", "domain", "class"))
    seed = checks.whole("reviews", "seed", seed, least=0)
    train, test = [], []
    for domain, label in itertools.product(_DOMAINS, _LABELS):
        draw, own = random.Random(f"{seed} {domain} {label}"), {}
        while len(own) < _TRAIN + _TEST:
            own[_sentence(draw, domain, label == "positive")] = None
        rows = [Row(text, label, domain, "", f"reviews, {domain}") for text in own]
        train += rows[:_TRAIN]
        test += rows[_TRAIN:]
    groups = dict.fromkeys(_DOMAINS, _LABELS)
    return labelled_texts(
        "reviews", train, test, groups, _LABELS, scenario, tokenizer, length, positions=False
    )


def _sentence(draw: random.Random, domain: str, positive: bool) -> str:
    things, aspects, praise, blame = (part.split("|") for part in _DOMAINS[domain])
    general, against = _PRAISE.split("|"), _BLAME.split("|")
    if not positive:
        praise, blame, general, against = blame, praise, against, general
    word, other = draw.sample(praise, 2)
    return draw.choice(_TEMPLATES).format(
        thing=draw.choice(things), aspect=draw.choice(aspects), word=word, other=other,
        Word=word.capitalize(), against=draw.choice(blame), general=draw.choice(general),
        opposed=draw.choice(against),
    )  # fmt: skip
