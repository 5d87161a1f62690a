"""The images of a COCO json and their files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtyolo.data.formats.coco_annotations import CocoFile, Identity, identity_of
from mtyolo.data.formats.reading import ImageReading, find_images, sizes_of
from mtyolo.data.records import Problems
from mtyolo.errors import DataError


def match_images(
    file: CocoFile, folders: Sequence[Path], by_path: dict[Path, ImageReading], problems: Problems
) -> None:
    """Give each image of the json its file, and its size from that file. Where the images are a list, those that it
    does not name are not wanted."""
    only_lists, by_name = all(folder.is_file() for folder in folders), _listed_by_name(folders)
    listed: dict[Identity, Path] = {}
    entries: dict[Identity, dict[str, Any]] = {}
    for entry in file.entries("images"):
        key, name = identity_of(entry.get("id")), str(entry.get("file_name"))
        if key in entries and entries[key].get("file_name") != name:
            raise DataError(
                f"{file.path}: image id {key} stands for {entries[key].get('file_name')} and {name}, so annotations "
                "can not be told apart; give each image its own id"
            )
        path = _locate(name, folders, by_name)
        if path is None and only_lists:
            continue
        if path is None:
            problems.add("image file missing (skipped)", file.path, f"image {key}: no {name} in {_places(folders)}")
            continue
        entries[key], listed[key] = entry, path
    if any(isinstance(entry.get("id"), str) for entry in entries.values()):
        problems.add("ids written as text (read as numbers)", file.path, "image ids are strings")
    sizes = sizes_of([path for path in listed.values() if path not in by_path], problems)
    for key, path in listed.items():
        if path in sizes and path not in by_path:
            by_path[path] = ImageReading(path, *sizes[path], identity=key)
            _compare_size(file, entries[key], by_path[path], problems)
        if path in by_path:
            file.images[key] = by_path[path]


def _listed_by_name(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """File name -> the images of this name in the lists among `folders`."""
    found: dict[str, list[Path]] = {}
    for path in find_images([folder for folder in folders if folder.is_file()]):
        found.setdefault(path.name, []).append(path)
    return found


def _locate(name: str, folders: Sequence[Path], by_name: Mapping[str, Sequence[Path]]) -> Path | None:
    """In a folder; or a path of a list that ends as the json's name does."""
    parts = Path(name).parts
    inside = [folder / name for folder in folders]
    listed = [path for path in by_name.get(parts[-1] if parts else "", ()) if path.parts[-len(parts) :] == parts]
    return next((path for path in (*inside, *listed) if os.path.isfile(path)), None)


def _places(folders: Sequence[Path]) -> str:
    return ", ".join(str(folder) for folder in folders)


def _compare_size(file: CocoFile, entry: dict[str, Any], image: ImageReading, problems: Problems) -> None:
    said = (entry.get("height"), entry.get("width"))
    if said[0] is not None and said != (image.height, image.width):
        problems.add(
            "image size differs from the json (the file is believed)",
            file.path,
            f"{image.path.name} is {image.width}x{image.height} upright, the json says {said[1]}x{said[0]}",
        )
