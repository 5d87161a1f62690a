"""What a store holds, in one small file that a person can read, and that another program can write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, ValidationError, model_validator

from mtyolo.config.strict import Positive, Strict
from mtyolo.errors import ConfigError, StoreError
from mtyolo.files import write_whole
from mtyolo.structures import Level

MANIFEST = "manifest.json"

REPLACED = "replaced"
"""Folder inside a store: another one, with what the replaced layers gave. Features must not depend on it."""

Dtype = Literal["fp32", "fp16", "bf16", "int8"]

DTYPES: tuple[Dtype, ...] = get_args(Dtype)

WORDS = {
    "extractor": "made by the extractor {0}, not {1}",
    "size": "made at {0} px, not {1} px",
    "geometry": "images were fitted by {0}, not by {1}",
    "levels": "has levels (stride: channels) {0}, not {1}",
    "dtype": "stored as {0}, not as {1}",
    "views": "has {0} views of an image, not {1}",
}
"""How each difference between two stores reads in a sentence: this store's, the other's."""

COMPARED_SOURCE = ("name", "arguments", "normalisation")
"""Of what two model files say. Not the weights: the extractor's own hash says which these are, whatever their file."""

OPTIONS = {"size": "--imgsz", "views": "--views", "dtype": "--dtype"}
"""What `mtyolo extract` is told them by."""


def _named(extractor: dict[str, str]) -> dict[str, str]:
    if not extractor.get("name"):
        raise ValueError("name is missing: say what made the features, so that no others are taken for them")
    return extractor


class Manifest(Strict):
    """manifest.json of a store."""

    format: Literal["mtyolo-features/1"]
    extractor: Annotated[dict[str, str], AfterValidator(_named)]
    """What made the features: `name`, and for comparison `weights` (a hash) and `normalisation`; more if you like."""
    size: Positive
    """Side of the square that images were fitted into, in pixels."""
    geometry: Literal["letterbox"] = "letterbox"
    levels: Annotated[dict[Positive, Positive], Field(min_length=1)]
    """stride -> channels."""
    dtype: Dtype
    views: Positive = 1
    """How often each image is stored; the first view is the plain letterbox."""
    images_per_shard: Positive
    splits: dict[str, int]
    """Split -> number of images."""
    source: dict[str, str] = Field(default_factory=dict)
    """What the model file said about the extractor, as far as that was known. Not in the fingerprint: older stores and
    those of other programs have none."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of the programs that wrote the store; for people, never compared. mtyolo's own is in all that it made."""

    @model_validator(mode="after")
    def _strides_divide(self) -> Manifest:
        coarsest = max(self.levels)
        odd = [stride for stride in (*self.levels, self.size) if max(stride, coarsest) % min(stride, coarsest)]
        if odd:
            raise ValueError(f"strides must divide the largest, {coarsest}, and that the size; {odd[0]} does not fit")
        return self

    @property
    def made_here(self) -> bool:
        """By mtyolo; otherwise another program has to make what is missing."""
        return "mtyolo" in self.versions

    @property
    def level_list(self) -> tuple[Level, ...]:
        return tuple(Level(stride, self.levels[stride]) for stride in sorted(self.levels))

    @property
    def fingerprint(self) -> str:
        """Of all that makes features what they are; every shard carries it, so that stores can not be mixed up."""
        meaning = self.model_dump(mode="json", include=set(WORDS))
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:16]

    def shards(self, split: str) -> int:
        return -(-self.splits[split] // self.images_per_shard)

    def shape(self, stride: int) -> tuple[int, int, int]:
        """Channels, height, width of one image's features."""
        return self.levels[stride], self.size // stride, self.size // stride

    def difference(self, other: Manifest) -> str | None:
        """What keeps features of `other` out of this store, as the end of a sentence."""
        for key, words in WORDS.items():
            mine, theirs = getattr(self, key), getattr(other, key)
            if mine != theirs:
                if key == "extractor":
                    return difference_of_identity(mine, theirs)
                return words.format(mine, theirs)
        return self._difference_of_source(other)

    def _difference_of_source(self, other: Manifest) -> str | None:
        mine, theirs = (
            {key: text for key, text in source.items() if key in COMPARED_SOURCE}
            for source in (self.source, other.source)
        )
        return difference_of_identity(mine, theirs)

    def options_beside(self, other: Manifest) -> str:
        """Options that an extraction of `other` needs to go on with this store; empty where no options make it fit."""
        differing = [key for key in WORDS if getattr(self, key) != getattr(other, key)]
        if not differing or not OPTIONS.keys() >= set(differing) or self._difference_of_source(other):
            return ""
        return " ".join(f"{OPTIONS[key]} {getattr(self, key)}" for key in differing)


def extract_command(directory: Path, splits: Iterable[str], *, targets: bool = False) -> str:
    """What makes splits or targets that are not in a store yet, as the store has the others."""
    if directory.name == REPLACED:
        directory, targets = directory.parent, True
    manifest = read_manifest(directory)
    kept = "" if manifest.dtype == "fp16" else f" --dtype {manifest.dtype}"
    return (
        f"mtyolo extract --model … --data … --out {directory} --imgsz {manifest.size} --views {manifest.views}{kept} "
        f"--splits {','.join(splits)}{' --targets' if targets or (directory / REPLACED).is_dir() else ''}"
    )


def difference_of_identity(made_by: Mapping[str, str], asked: Mapping[str, str]) -> str | None:
    """The first thing in which two extractors differ; what only one of them tells is not compared."""
    for key in sorted(made_by.keys() & asked.keys(), key=lambda key: (key != "name", key)):
        mine, theirs = made_by[key], asked[key]
        if mine != theirs:
            what = "" if key == "name" else f"'s {key}"
            return f"made with the extractor{what} {mine}, not {theirs}"
    return None


def dtype_of(word: str) -> Dtype:
    """Raises ConfigError for a word that is no way of storing."""
    found = next((dtype for dtype in DTYPES if dtype == word), None)
    if found is None:
        raise ConfigError(f"--dtype {word}: features are stored as one of {', '.join(DTYPES)}")
    return found


def read_manifest(directory: Path | str) -> Manifest:
    """Raises StoreError: no store there, or its manifest is not one."""
    path = Path(directory) / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(
            f"{directory}: no feature store (no {MANIFEST} in {Path(directory).absolute()}); run mtyolo extract, "
            "or write one with a program of your own, see docs/features.md"
        ) from None
    except OSError as error:
        raise StoreError(f"{path}: can not be read: {error}") from None
    except ValidationError as error:
        detail = error.errors()[0]
        place = ".".join(str(key) for key in detail["loc"])
        reason = detail["msg"].removeprefix("Value error, ")
        raise StoreError(f"{path}: {place or 'the file'}: {reason}; see docs/features.md") from None


def repair_of(directory: Path | str) -> str:
    """What to do about a damaged shard of a store, as the end of a sentence. What another program made, mtyolo can not
    make again."""
    try:
        made_here = read_manifest(directory).made_here
    except StoreError:
        made_here = True
    if not made_here:
        return "write it again with the program that made this store, see docs/features.md"
    targets = " with --targets" if Path(directory).name == REPLACED else ""
    return f"run mtyolo extract again{targets}, it writes only what is missing or damaged"


def write_manifest(directory: Path | str, manifest: Manifest) -> None:
    """By one process of an extraction alone; what it left unfinished when it was killed goes."""
    for left_over in Path(directory).glob(f".{MANIFEST}.*"):
        left_over.unlink(missing_ok=True)
    write_whole(Path(directory) / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())
