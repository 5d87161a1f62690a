"""What pydantic says of a document, by the keys that a person wrote.

Where a value may be of several kinds, pydantic has an error for each, under keys with names of its own: of these, the
one that what is written was meant for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import groupby
from typing import Any, NamedTuple

KeyPath = tuple[str | int, ...]
KIND = re.compile(r".*[\[\]()-].*|[A-Z]\w*|bool|str|int|float|none")
"""How pydantic calls a member of a union, or a dictionary's key, among the keys: list[str], AugmentConfig, [key]."""
EXPECTED = "Input should be "
INTERNAL = re.compile(r" or instance of \w+|, unable to .*")


class Mistake(NamedTuple):
    """One thing that is wrong: where, pydantic's word for its sort, what is expected, and what was written."""

    keys: KeyPath
    sort: str
    reason: str
    given: Any


def mistakes_in(content: Any, details: Sequence[Mapping[str, Any]]) -> list[Mistake]:
    """One for each place. content: what was checked. details: of pydantic's error."""
    found = [(_written_keys(content, detail["loc"]), detail) for detail in details]
    # Of a union, a member that was looked into was meant, and not those of another kind.
    inner = [(keys, detail) for keys, detail in found if not _is_member(keys, detail) or not _goes_on(keys, found)]
    return [_joined(keys, [detail for _, detail in group]) for keys, group in groupby(inner, key=lambda one: one[0])]


def _written_keys(content: Any, keys: KeyPath) -> KeyPath:
    written: list[str | int] = []
    for key in keys:
        inside = content[key] if _has(content, key) else None
        if inside is None and isinstance(key, str) and not _has(content, key) and KIND.fullmatch(key):
            continue
        written.append(key)
        content = inside
    return tuple(written)


def _has(content: Any, key: str | int) -> bool:
    if isinstance(content, Mapping):
        return key in content
    return isinstance(content, Sequence) and not isinstance(content, str) and key in range(len(content))


def _is_member(keys: KeyPath, detail: Mapping[str, Any]) -> bool:
    """Does it say that the whole value is not what a member of a union wants?"""
    return tuple(detail["loc"][-1:]) != keys[-1:]


def _goes_on(keys: KeyPath, found: Sequence[tuple[KeyPath, Mapping[str, Any]]]) -> bool:
    return any(len(other) > len(keys) and other[: len(keys)] == keys for other, _ in found)


def _joined(keys: KeyPath, details: Sequence[Mapping[str, Any]]) -> Mistake:
    """What any of the members would take."""
    first = details[0]
    reasons = list(dict.fromkeys(INTERNAL.sub("", detail["msg"]) for detail in details))
    if all(reason.startswith(EXPECTED) for reason in reasons):
        reason = EXPECTED + " or ".join(reason.removeprefix(EXPECTED) for reason in reasons)
    else:
        reason = reasons[0]
    return Mistake(keys, first["type"], reason.removeprefix("Value error, "), first["input"])


def nearest_word(mistake: Mistake) -> str:
    """The right word that what is written comes close to, for the end of a sentence; empty where none does."""
    words = re.findall(r"'([^']+)'", mistake.reason) if mistake.sort == "literal_error" else []
    close = get_close_matches(mistake.given, words, n=1) if isinstance(mistake.given, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""
