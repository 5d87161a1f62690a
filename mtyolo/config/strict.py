"""What all schemas have in common: nothing is guessed, and a mistake is one sentence that names its key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mtyolo.config.reading import Document, sentence
from mtyolo.errors import ConfigError


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"a number is expected, got {value}")
    return value


def _as_text(value: Any) -> Any:
    if value == "":
        raise ValueError("a path is expected, got an empty text; name a file or folder, or leave the key out")
    if isinstance(value, str) and "\0" in value:
        raise ValueError("a path has no character of code 0, and this has one; write it anew")
    return os.fspath(value) if isinstance(value, os.PathLike) else value


PathText = Annotated[str, BeforeValidator(_as_text)]
"""A file or folder, or a word in its place; from Python a Path does, too."""
Positive = Annotated[int, Field(gt=0), BeforeValidator(_no_truth)]


class Strict(BaseModel):
    """Numbers are finite. Those that nobody checks, in `arguments`, are written to json as they are, not as null."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants")

    if not TYPE_CHECKING:  # to whom the fields are the signature

        def __init__(self, **values: Any) -> None:
            """Raises ConfigError naming key and remedy, as for a file."""
            try:
                super().__init__(**values)
            except ValidationError as error:
                given = Document(Path(type(self).__name__), values, {})
                raise ConfigError(sentence(type(self), given, error)) from None

        # Or pydantic would come here from model_validate, too, where errors have to know their place in a file.
        __init__.__pydantic_base_init__ = True
