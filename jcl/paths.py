"""Patterns of paths, such as "h_*/attn/*", by which params and modules are named."""

import difflib
import fnmatch
from collections.abc import Sequence

from jcl.errors import InputError


def as_patterns(where: str | Sequence[str]) -> tuple[str, ...]:
    """One pattern or several, as a tuple."""
    return (where,) if isinstance(where, str) else tuple(where)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a path, written "h_0/attn/c_attn/kernel", matches one of the patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def check(complaint: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    """Refuses a pattern that matches none of the names, by the complaint and the nearest names."""
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            near = difflib.get_close_matches(pattern, names, n=5, cutoff=0.0)
            raise InputError(
                f"{complaint} {pattern!r}. The nearest are: {', '.join(near) or 'none'}."
            )
