"""YAML that remembers its lines, and validation errors that name them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from reprlib import Repr
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mtyolo.config.mistakes import KeyPath, mistakes_in, nearest_word
from mtyolo.errors import ConfigError

Schema = TypeVar("Schema", bound=BaseModel)


@dataclass(frozen=True)
class Document:
    """A parsed YAML file and the line that each key stands on."""

    path: Path
    content: Any
    lines: dict[KeyPath, int]

    def place(self, keys: Sequence[str | int]) -> str:
        """file:line of the deepest known part of a key path."""
        for end in range(len(keys), -1, -1):
            line = self.lines.get(tuple(keys[:end]))
            if line is not None:
                return f"{self.path}:{line}"
        return str(self.path)


def read_yaml(path: Path | str) -> Document:
    """Read one YAML file. Raises ConfigError: missing, unreadable, not YAML, or the same key twice."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file (looked at {path.absolute()})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can not be read as UTF-8 text: {error}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
        lines: dict[KeyPath, int] = {}
        if node is not None:
            _collect_lines(path, node, (), lines, set())
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}{_mark(error)}: not valid YAML: {_problem(error)}") from None
    except RecursionError:
        raise ConfigError(f"{path}: too deeply nested to be read") from None
    return Document(path, content, lines)


def _mark(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark else ""


def _problem(error: Exception) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def _collect_lines(path: Path, node: yaml.Node, keys: KeyPath, lines: dict[KeyPath, int], met: set[int]) -> None:
    """met: ids of nodes. An alias leads back to one: of what is inside, the lines are those of its anchor."""
    lines.setdefault(keys, node.start_mark.line + 1)
    if id(node) in met:
        return
    met.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen: set[str | int] = set()
        for key_node, value in node.value:
            key = _key(key_node)
            if key in seen:
                raise ConfigError(f"{path}:{key_node.start_mark.line + 1}: the key {key!r} stands here a second time")
            seen.add(key)
            lines[(*keys, key)] = key_node.start_mark.line + 1
            _collect_lines(path, value, (*keys, key), lines, met)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _collect_lines(path, item, (*keys, index), lines, met)


def _key(node: yaml.Node) -> str | int:
    if node.tag == "tag:yaml.org,2002:int":
        return int(node.value)
    return str(node.value)


def nearest(word: object, known: Iterable[object], *, limit: int = 12) -> str:
    """A remedy for an unknown word: the nearest right one, or the list of right ones."""
    names = [str(name) for name in known]
    close = get_close_matches(str(word), names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f", … ({len(names)} in all)" if len(names) > limit else ""
    return "known: " + ", ".join(names[:limit]) + more


def validate(schema: type[Schema], document: Document) -> Schema:
    """Check a document against a schema. Raises ConfigError naming file, line, key and remedy of the first mistake."""
    if not isinstance(document.content, dict):
        raise ConfigError(f"{document.path}: expected keys and values, got {type(document.content).__name__}")
    try:
        return schema.model_validate(document.content)
    except ValidationError as error:
        raise ConfigError(sentence(schema, document, error)) from None


def sentence(schema: type[BaseModel], document: Document, error: ValidationError) -> str:
    """The first mistake, as people hear it: where, which key, and what to do."""
    found = mistakes_in(document.content, error.errors())
    # An unknown key is the most useful thing to hear first: it often explains a missing one.
    mistake = next((item for item in found if item.sort == "extra_forbidden"), found[0])
    keys, place = mistake.keys, document.place(mistake.keys)
    name = ".".join(str(key) for key in keys)
    more = f" ({len(found) - 1} more)" if len(found) > 1 else ""
    if mistake.sort == "extra_forbidden":
        return f"{place}: unknown key {name!r}; {nearest(keys[-1], _known_keys(schema, keys[:-1]))}{more}"
    if mistake.sort == "missing":
        return f"{document.place(keys[:-1])}: the key {name!r} is missing{more}"
    given = "" if mistake.sort == "value_error" else f", got {_shown(mistake.given)}{nearest_word(mistake)}"
    return ": ".join(filter(None, (place, name, f"{mistake.reason}{given}{more}")))


def _shown(given: object) -> str:
    """What was written, cut where it goes on and on."""
    short = Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 200, 200
    short.maxlist = short.maxdict = short.maxtuple = 6
    return short.repr(given)


def _known_keys(schema: type[BaseModel], keys: Sequence[str | int]) -> list[str]:
    for key in keys:
        field = schema.model_fields.get(str(key))
        inner = _inner_schema(field.annotation) if field else None
        if inner is not None:
            schema = inner
    return [field.alias or name for name, field in schema.model_fields.items()]


def _inner_schema(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        inner = _inner_schema(part)
        if inner is not None:
            return inner
    return None
