"""A data file: what it says, where its pictures and labels lie, and the files that it joins."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtyolo.config.data import DataConfig
from mtyolo.config.reading import Document, read_yaml, validate
from mtyolo.data.formats.coco import category_names, category_points, read_outline
from mtyolo.data.formats.coco_annotations import CocoFile
from mtyolo.data.formats.reading import folders_below
from mtyolo.data.images import IMAGE_SUFFIXES
from mtyolo.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")
SMALLEST_FIRST = ("val", "test", "train")
"""Where one json of several tells enough."""
YAML_SUFFIXES = (".yaml", ".yml")

Data = str | Path | Mapping[str, Any] | DataConfig
"""A data file, a folder that holds one or pictures alone, or a data file's content; its paths then start where one
stands."""


@dataclass(frozen=True)
class DataSource:
    """A data file, checked, and the folder that its paths start from."""

    config: DataConfig
    root: Path
    document: Document | None = None
    outlines: dict[Path, CocoFile] = field(default_factory=dict, repr=False, compare=False)
    """Of json files, which may be large: read once."""

    def place(self, *keys: str | int) -> str:
        """file:line of a key, for messages."""
        return self.document.place(keys) if self.document else "data configuration"

    def has(self, split: str) -> bool:
        """Does this file, or one that it joins, have the split?"""
        return any(part.has_own(split) for part in self.parts())

    def has_own(self, split: str) -> bool:
        return getattr(self.config, split) is not None or bool(self._annotations(split))

    def parts(self) -> list[DataSource]:
        """This file and those that it joins, and they join, each once."""
        found: dict[Path, DataSource] = {self._file: self}
        waiting = [self]
        while waiting:
            part = waiting.pop(0)
            for name in part.config.join:
                joined = read_data(_below(part._file.parent, name))
                if joined._file not in found:
                    found[joined._file] = joined
                    waiting.append(joined)
        return list(found.values())

    @property
    def _file(self) -> Path:
        return Path(os.path.abspath(self.document.path)) if self.document else self.root / "(data configuration)"

    def folders(self, split: str) -> list[Path]:
        """Existing image folders (or lists) of a split. Raises DataError with the absolute path that is missing."""
        given = getattr(self.config, split)
        folders = [self._absolute(name) for name in as_list(given)] or [self.root]
        for folder in folders:
            if not os.path.exists(folder):  # unlike Path.exists, no error for a name of thousands of letters
                raise DataError(f"{self.place(split)}: {split}: no such folder: {folder}")
        return folders

    def annotation_files(self, split: str) -> list[Path]:
        return [self._absolute(name) for name in self._annotations(split)]

    def _annotations(self, split: str) -> list[str]:
        return as_list({str(key): value for key, value in self.config.annotations.items()}.get(split))

    def _absolute(self, name: str) -> Path:
        return _below(self.root, name)

    def label_names(self) -> list[str]:
        """What stands in place of `images` in the path of a label file; none where the data file leaves it open."""
        return [os.path.expanduser(name) for name in as_list(self.config.labels)]

    def names(self) -> dict[int, str] | None:
        """Class names as the file gives them: by names, by nc, or by all splits' COCO categories."""
        if self.config.names is not None:
            listed = self.config.names
            return dict(enumerate(listed)) if isinstance(listed, list) else dict(listed)
        if self.config.nc is not None:
            return {number: str(number) for number in range(self.config.nc)}
        files = list(dict.fromkeys(path for split in SPLITS for path in self.annotation_files(split)))
        return category_names([self._outline(path) for path in files]) if files else None

    def points(self) -> int | None:
        """Keypoints of an object, as kpt_shape or a COCO json has it, of this file or of one that it joins."""
        found = (part._own_points() for part in self.parts() if part.gives_points)
        return next((points for points in found if points), None)

    @property
    def gives_points(self) -> bool:
        """May its images be labelled for keypoints?"""
        return self.config.tasks is None or "keypoint" in self.config.tasks

    def _own_points(self) -> int | None:
        """The first json that is there speaks for all: they may be large."""
        if self.config.kpt_shape:
            return self.config.kpt_shape[0]
        every = ([path for path in self.annotation_files(split) if os.path.exists(path)] for split in SMALLEST_FIRST)
        files, names = next(filter(None, every), []), self.names()
        return category_points([self._outline(path) for path in files], names) if files and names else None

    def _outline(self, path: Path) -> CocoFile:
        if path not in self.outlines:
            self.outlines[path] = read_outline(path)
        return self.outlines[path]


def read_data(source: Data | DataSource) -> DataSource:
    """Read and check a data file: a path, a folder that holds one, or the configuration itself.

    A folder with pictures, in it or below it, and no data file is a training split without labels and without classes.
    Raises ConfigError naming file, line and remedy.
    """
    if isinstance(source, DataSource):
        return source
    source = with_checked_content(source)
    if isinstance(source, DataConfig):
        return DataSource(source, _below(Path.cwd(), source.path or "."))
    path = Path(source)
    if path.is_dir():
        found = _first_found(path)
        files = [file for file in found if file.suffix.lower() in YAML_SUFFIXES]
        if found and not files:
            return DataSource(DataConfig(path=str(path.absolute()), train=".", names={}, tasks=[]), path.absolute())
        path = _data_file_of(path, files)
    document = read_yaml(path)
    config = validate(DataConfig, document)
    return DataSource(config, _below(document.path.parent, config.path or ""), document)


def with_checked_content(data: Data) -> str | Path | DataConfig:
    """A data file's content as a DataConfig; files stay files. Raises ConfigError where it is neither."""
    if isinstance(data, Mapping):
        return validate(DataConfig, Document(Path("data"), dict(data), {}))
    if isinstance(data, str | Path | DataConfig):
        return data
    raise ConfigError(f"data: expected a data file, a folder, or a dictionary of its keys, got {type(data).__name__}")


def _first_found(folder: Path) -> list[Path]:
    """Pictures and data files in a folder or, where it has none, in the first below it that has."""
    for parent, names in folders_below(folder):
        paths = (Path(parent, name) for name in sorted(names))
        if found := [path for path in paths if path.suffix.lower() in (*IMAGE_SUFFIXES, *YAML_SUFFIXES)]:
            return found
    return []


def _data_file_of(folder: Path, found: list[Path]) -> Path:
    """found: data files, all in one folder."""
    if not found:
        raise ConfigError(f"{folder}: expected a data file (.yaml) or pictures in this folder, found neither")
    named = [path for path in found if path.stem == folder.absolute().name]
    if found[0].parent != folder or (len(found) != 1 and len(named) != 1):
        names = ", ".join(str(path.relative_to(folder)) for path in found)
        raise ConfigError(f"{folder}: expected one data file in this folder, found {names}; give the file itself")
    return named[0] if len(named) == 1 else found[0]


def _below(folder: Path, name: str) -> Path:
    """A path of a data file; ~ is the home folder."""
    # abspath, not resolve: a linked folder keeps its own name, which label folders are found by.
    return Path(os.path.abspath(folder / os.path.expanduser(name)))


def as_list(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
