"""Labelled texts as streams: any table of texts, and the sets that the literature uses."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jcl import checks, strict
from jcl.data.labelled_text import Encoder, Scenario, TextStream, labelled_texts
from jcl.data.tables import Columns, Row, has_parts, read_table
from jcl.errors import InputError

Location = str | os.PathLike
Group = Sequence[str] | Sequence[int]
Tasks = int | Sequence[str] | Sequence[Group] | Mapping[str, Group] | None


def text_classification(
    source: Location | Sequence[Location] | Mapping[str, Location],
    *,
    tokenizer: Encoder,
    text: str | Sequence[str] = "text",
    label: str = "label",
    by: str = "labels",
    tasks: int
    | Sequence[str]
    | Sequence[Sequence[str]]
    | Mapping[str, Sequence[str]]
    | None = None,
    scenario: Scenario = "class",
    test: Location | Sequence[Location] | Mapping[str, Location] | float | None = None,
    parts: tuple[str, str] = ("train", "test"),
    split: str = "split",
    length: int | None = None,
    seed: int = 0,
) -> TextStream:
    """Returns the stream "text classification" over a table of labelled texts.

    class: targets are the classes themselves and nothing tells the task. task: as class, and every
    example has its `task` and a `label_mask` of its task's classes. domain: where tasks are groups
    of labels, targets are the positions in the group, shared by all tasks (as in `split`); where
    tasks are domains or files, they share their labels already, and targets are the classes.

    Args:
        source: a .csv (fields may be quoted), .tsv (a quotation mark is a letter) or .jsonl file;
            a folder that Hugging Face's save_to_disk wrote; or the name of a tensorflow-datasets
            set prepared as array_record, such as "ag_news_subset" or "glue/sst2". Several are a
            list, or a dict {task name: source}.
        tokenizer: text to ids, transformers' or jcl's.
        text: the column of the text, or two, such as ("sentence1", "sentence2"), of a pair, which
            the tokenizer, then transformers' own, joins.
        label: the column of the label: names, or whole numbers; white space around one is none of
            it.
        by: what makes a task: "labels", groups of them; "file", each of several sources; or else
            the column that names the domain of a row.
        tasks: by labels: the groups, as lists or as {task name: labels}, or the number of equal
            groups, of the set's own order of its labels where it has one, else of their
            alphabetical (whole numbers: their numerical) order. By a column: the domains in
            order; by default as they first appear.
        scenario: which.
        test: the source or sources of the test part; or its share, in (0, 1), drawn by `seed` of
            every label's texts (of every domain), equal texts on one side and never a label's only
            text; or None, where the source is itself divided: a set in its parts, a table by the
            column `split`.
        parts: what the train and the test part are called there. Other rows are left out.
        split: the column of a table that names the part of a row.
        length: tokens of every example; by default those of the longest text. Longer texts are
            cut, with a warning, and counted in the stream's `truncated`.
        seed: of a drawn test part.

    Raises:
        InputError: a source is missing, empty or of another format; a column is missing; a row
            has no text or no label, or one that occurs in no train row, or a quotation mark has
            swallowed rows (the message names file and line); there is one class only; the groups do
            not fit the labels; the length leaves no token of a text; the tokenizer is none, has no
            id for padding or encodes no pairs.

    >>> import pathlib, tempfile
    >>> from jcl.data import ByteTokenizer, text_classification
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "news.csv"
    >>> rows = [f"{word} {i},{word},{part}" for word in ("war", "art", "tax", "sea")
    ...         for i, part in enumerate(["train", "train", "test"])]
    >>> _ = path.write_text("\\n".join(["text,label,split", *rows]))
    >>> stream = text_classification(path, tokenizer=ByteTokenizer(), tasks=2)
    >>> [task.name for task in stream.tasks], stream.length
    (['art, sea', 'tax, war'], 5)
    """
    checks.one_of("text_classification", "scenario", scenario, ("task", "domain", "class"))
    seed = checks.whole("text_classification", "seed", seed, least=0)
    domain = by if by not in ("labels", "file") else None
    texts = [text] if isinstance(text, str) else [*text] if isinstance(text, Sequence) else []
    if len(texts) not in (1, 2) or not all(isinstance(each, str) for each in texts):
        raise InputError(
            f"text_classification(text={text!r}): the name of a column, or of the two of a pair"
        )
    if len(parts) != 2 or parts[0] == parts[1]:
        raise InputError(
            f"text_classification(parts={parts!r}): the names of the train and of the test part"
        )
    train, held_back, orders = [], [], set()
    for name, each, its_test in _sources(source, test, by):
        columns = Columns(texts[0], label, domain, pair=texts[1] if texts[1:] else None)
        learned, tested, order = _parts(each, its_test, columns, parts, split)
        if by == "file":
            learned = [row._replace(domain=name) for row in learned]
            tested = [row._replace(domain=name) for row in tested]
        train += learned
        held_back += tested
        orders.add(order)
    if isinstance(test, float):
        train, held_back = _drawn(train, test, seed)
    seen = {row.label for row in train}
    # Several sets have an order in common or none.
    order = orders.pop() if len(orders) == 1 else None
    labels = [each for each in order if each in seen] if order else _ordered(seen)
    if by == "labels":
        groups = _groups(tasks, labels)
        labels = [each for group in groups.values() for each in group]
        home = {each: name for name, group in groups.items() for each in group}
        _check_known(held_back, "label", home, "train row")
        train = [row._replace(domain=home[row.label]) for row in train]
        held_back = [row._replace(domain=home[row.label]) for row in held_back]
    else:
        names = _domains(tasks, by, train)
        _check_known(held_back, "label", seen, "train row")
        _check_known(held_back, "domain", names, "train row")
        own = {name: {row.label for row in train if row.domain == name} for name in names}
        groups = {name: [each for each in labels if each in own[name]] for name in names}
    if isinstance(test, float):
        tested = {row.domain for row in held_back}
        for name in groups:
            if name not in tested:
                raise InputError(
                    f"the task '{name}' has no test example: test={test} never draws a label's "
                    "only text, which is to be learned, and its labels have one each: give more "
                    "texts, or test= a file"
                )
    return labelled_texts(
        "text classification", train, held_back, groups, labels, scenario, tokenizer, length,
        positions=scenario == "domain" and by == "labels",
    )  # fmt: skip


def clinc150(
    path: Location | None = None,
    *,
    tokenizer: Encoder,
    scenario: Scenario = "class",
    length: int | None = None,
) -> TextStream:
    """CLINC150 (Larson et al. 2019): 150 intents of a voice assistant in 10 tasks, its domains.

    100 texts of an intent to learn and 30 to test; texts out of scope are left out. In the domain
    scenario the target is the position of the intent within its domain, 0 to 14, as Split MNIST's
    is the position of the digit in its pair (van de Ven and Tolias 2019): all tasks share the
    targets, but what a target means is new in every one.

    Args:
        path: of the folder with data_full.json and domains.json, as the authors publish them; by
            default clinc150 in the folder that the environment variable JCL_DATA names.
        tokenizer: text to ids.
        scenario: as in `text_classification`.
        length: as in `text_classification`.

    Raises:
        InputError: the files are not there or not as published.
    """
    checks.one_of("clinc150", "scenario", scenario, ("task", "domain", "class"))
    other = 'jcl.data.text_classification("clinc_oos", text="text", label="intent_name", tasks=...)'
    folder = _folder(path, "clinc150", ("data_full.json", "domains.json"), other)
    groups = _json(folder / "domains.json", {str: [str]})
    data = _json(folder / "data_full.json", {"train": [[str]], "test": [[str]]})
    if not data["train"]:
        raise InputError(f"{folder} holds other files than CLINC150's: fetch them again")
    home = {intent: domain for domain, intents in groups.items() for intent in intents}
    both = []
    for part in ("train", "test"):
        rows = []
        for number, entry in enumerate(data[part]):
            place = f"{folder / 'data_full.json'}, {part}, entry {number}"
            if len(entry) != 2 or entry[1] not in home:
                raise InputError(f"{place} is no [text, intent] of domains.json: fetch it again")
            rows.append(Row(entry[0], entry[1], home[entry[1]], part, place))
        both.append(rows)
    labels = list(home)
    return labelled_texts(
        "clinc150", both[0], both[1], groups, labels, scenario, tokenizer, length,
        positions=scenario == "domain",
    )  # fmt: skip


def banking77(
    path: Location | None = None,
    *,
    tokenizer: Encoder,
    scenario: Scenario = "class",
    tasks: int = 7,
    length: int | None = None,
) -> TextStream:
    """Banking77 (Casanueva et al. 2020): 77 intents of bank customers in 7 tasks of 11.

    Intents follow categories.json. The train part is unbalanced, 35 to 187 texts an intent; the
    test part has 40 of each. In the domain scenario the target is the position in the task.

    Args:
        path: of the folder with train.csv, test.csv and categories.json, as the authors publish
            them; by default banking77 in the folder that the environment variable JCL_DATA names.
        tokenizer: text to ids.
        scenario: as in `text_classification`.
        tasks: their number; it divides 77.
        length: as in `text_classification`.

    Raises:
        InputError: the files are not there or not as published.
    """
    checks.one_of("banking77", "scenario", scenario, ("task", "domain", "class"))
    other = 'jcl.data.text_classification("train.csv", test="test.csv", label="category", ...)'
    files = ("train.csv", "test.csv", "categories.json")
    folder = _folder(path, "banking77", files, other)
    columns = Columns("text", "category")
    both = [read_table(folder / file, columns, "").rows for file in files[:2]]
    groups = _groups(tasks, _json(folder / "categories.json", [str]))
    labels = [each for group in groups.values() for each in group]
    home = {each: name for name, group in groups.items() for each in group}
    for rows in both:
        _check_known(rows, "label", home, "entry of categories.json")
    train, test = ([row._replace(domain=home[row.label]) for row in rows] for rows in both)
    return labelled_texts(
        "banking77", train, test, groups, labels, scenario, tokenizer, length,
        positions=scenario == "domain",
    )  # fmt: skip


def _sources(source: Any, test: Any, by: str) -> list[tuple[str, Location, Any]]:
    """Returns (task name, source, its test) of every source."""
    one = isinstance(source, str | os.PathLike)
    named = _by_name("source", [source] if one else source)
    if by == "file" and len(named) < 2:
        raise InputError('text_classification(by="file"): give a list of at least two files')
    if test is None or isinstance(test, float):
        if isinstance(test, float):
            checks.number("text_classification", "test", test, "(0, 1)")
        return [(name, each, test) for name, each in named.items()]
    if isinstance(test, str | os.PathLike):
        test = [test]
    tests = test if isinstance(test, Mapping) else None
    if tests is None:
        if not isinstance(test, Sequence) or len(test) != len(named):
            raise InputError(
                f"text_classification(test={test!r}): give one test source for each of "
                f"{len(named)} sources, or a share in (0, 1)"
            )
        tests = dict(zip(named, test, strict=True))
    if set(tests) != set(named):
        raise InputError(
            f"test has the names {', '.join(map(str, tests))}, source {', '.join(named)}: use the "
            "same"
        )
    return [(name, each, tests[name]) for name, each in named.items()]


def _by_name(argument: str, sources: Any) -> dict[str, Location]:
    valid = isinstance(sources, Sequence | Mapping) and len(sources) > 0
    values = (sources.values() if isinstance(sources, Mapping) else sources) if valid else [None]
    for each in values:
        if not isinstance(each, str | os.PathLike):
            raise InputError(
                f"text_classification({argument}={sources!r}): give a path, a list of paths, or "
                "{task name: path}"
            )
    if isinstance(sources, Mapping):
        return dict(sources)
    named = {}
    for each in sources:
        name = Path(each).stem
        if name in named:
            raise InputError(
                f"{named[name]} and {each} both give a task named '{name}': give a dict "
                "{task name: path}"
            )
        named[name] = each
    return named


def _parts(
    source: Location, test: Any, columns: Columns, parts: tuple[str, str], split: str
) -> tuple[list[Row], list[Row], tuple[str, ...] | None]:
    """Returns train rows, test rows and the set's own order of its labels; a share is not drawn."""
    if test is not None or has_parts(source):
        train = read_table(source, columns, parts[0])
        if isinstance(test, float):
            return train.rows, [], train.order
        held_back = read_table(source if test is None else test, columns, parts[1])
        return train.rows, held_back.rows, train.order
    try:
        table = read_table(source, columns._replace(part=split), parts[0])
    except InputError as error:
        if f"no column '{split}'" not in str(error):
            raise
        raise InputError(
            f"{error}; it would name the part of a row: give test= a file or a share such as 0.2 "
            "where there is no such column"
        ) from None
    of = {part: [row for row in table.rows if row.part == part] for part in parts}
    for part, rows in of.items():
        if not rows:
            found = ", ".join(sorted({row.part for row in table.rows}))
            raise InputError(
                f"{source}: the column '{split}' holds {found}, and no '{part}': choose with "
                "parts=, or give test="
            )
    return of[parts[0]], of[parts[1]], table.order


def _drawn(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Returns train and test rows: of each label (of each domain) a share of its texts."""
    generator = np.random.default_rng(seed)
    strata: dict[tuple[str, str], dict[Any, None]] = {}
    for row in rows:
        strata.setdefault((row.domain, row.label), {})[row.text, row.pair] = None
    chosen: set[tuple[str, str, Any]] = set()
    for (domain, label), texts in strata.items():
        number = min(max(round(share * len(texts)), 1), len(texts) - 1)
        order = generator.permutation(len(texts))[:number]
        every = list(texts)
        chosen.update((domain, label, every[index]) for index in order)
    both: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        both[(row.domain, row.label, (row.text, row.pair)) in chosen].append(row)
    return both


def _ordered(labels: set[str]) -> list[str]:
    if all(re.fullmatch(r"-?\d{1,18}", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))  # "1" and "01" are two
    return sorted(labels)


def _groups(tasks: Any, labels: Sequence[str]) -> dict[str, list[str]]:
    """Returns {task: labels}: the given groups checked, or equal ones of `labels`."""
    if tasks is None:
        raise InputError(
            f"text_classification: say how the {len(labels)} labels make tasks: tasks= their "
            "number, or lists of labels; or by= the column of a domain"
        )
    if not isinstance(tasks, Mapping | Sequence) or isinstance(tasks, str):
        number = checks.whole("text_classification", "tasks", tasks)
        if number > len(labels) or len(labels) % number:
            raise InputError(
                f"tasks={number}: {len(labels)} labels do not fall into that many equal groups; "
                "give a divisor, or lists of labels"
            )
        size = len(labels) // number
        tasks = [labels[start : start + size] for start in range(0, len(labels), size)]
    named = isinstance(tasks, Mapping)
    groups: dict[str, list[str]] = {}
    home: dict[str, str] = {}
    for name, group in tasks.items() if named else enumerate(tasks):
        if isinstance(group, str) or not isinstance(group, Sequence) or not group:
            raise InputError(f"tasks holds {group!r}: give every task a list of labels")
        group = [str(label) for label in group]
        name = str(name) if named else _title(group)
        for label in group:
            if label in home:
                raise InputError(f"the label '{label}' stands in two places of tasks: drop one")
            if label not in labels:
                raise InputError(
                    f"the label '{label}' of tasks occurs in no train row, which have "
                    f"{_title(labels)}: check its spelling"
                )
            home[label] = name
        groups[name] = group
    for label in labels:
        if label not in home:
            raise InputError(
                f"the label '{label}' is in no group of tasks: add it to one, or drop its rows"
            )
    return groups


def _title(labels: Sequence[str]) -> str:
    if len(labels) <= 3:
        return ", ".join(labels)
    return f"{', '.join(labels[:2])} and {len(labels) - 2} more"


def _domains(tasks: Any, by: str, train: Sequence[Row]) -> list[str]:
    found = dict.fromkeys(row.domain for row in train)
    if tasks is None:
        return list(found)
    if by == "file" or isinstance(tasks, str) or not isinstance(tasks, Sequence):
        raise InputError(
            f"text_classification(tasks={tasks!r}, by='{by}'): leave tasks out, or give the names "
            "of a column's domains in their order"
        )
    names = [str(name) for name in tasks]
    if len(set(names)) < len(names):
        raise InputError(f"tasks names a domain twice ({', '.join(names)}): drop one")
    for name in sorted({*names} ^ {*found}):
        raise InputError(
            f"the domain '{name}' is in one of tasks and the column '{by}' only: the column has "
            f"{_title(list(found))}"
        )
    return names


def _check_known(rows: Sequence[Row], field: str, known: Any, where: str) -> None:
    for row in rows:
        if getattr(row, field) not in known:
            raise InputError(
                f"{row.place}: the {field} '{getattr(row, field)}' occurs in no {where}: check its "
                "spelling, or drop the row"
            )


def _folder(path: Location | None, name: str, files: Sequence[str], other: str) -> Path:
    """The folder of a published set, given or in JCL_DATA."""
    data = os.environ.get("JCL_DATA")
    if path is None and not data:
        raise InputError(
            f"{name} is not given, and JCL_DATA is unset: set it to a folder that holds {name}, "
            f"give jcl.data.{name} the path of {', '.join(files)}, or use {other}"
        )
    folder = Path(path) if path is not None else Path(data or "") / name
    for file in files:
        if not (folder / file).is_file():
            raise InputError(
                f"There is no {folder / file}: give jcl.data.{name} the folder of "
                f"{', '.join(files)}, set JCL_DATA to the one that holds {name}, or use {other}"
            )
    return folder


def _json(path: Path, shape: Any) -> Any:
    try:
        found = strict.read_json(path)
        strict.fits(found, shape)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is not JSON as it was published ({error}): fetch it again"
        ) from None
    return found
