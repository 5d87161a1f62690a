"""The data file: where images and labels are, and what the numbers in them mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mtyolo.config.strict import PathText, Strict

MOST_CLASSES = 100_000
"""ImageNet-21k has 21,841. A mistyped number would take minutes, and all memory."""
Paths = PathText | list[PathText] | None


class DataConfig(Strict):
    """The ultralytics convention, extended by COCO json and by several kinds of labels for one image."""

    path: PathText | None = None
    """Root of the other paths, relative to this file's folder. Default: this file's folder."""
    train: Paths = None
    val: Paths = None
    test: Paths = None
    annotations: dict[Literal["train", "val", "test"], PathText | list[PathText]] = {}
    """Split -> COCO json files; files about the same images and annotation ids are merged."""
    labels: Paths = None
    """YOLO txt folders in place of `images`. Default: those of labels, labels-seg, labels-pose that exist."""
    names: dict[int, str] | list[str] | None = None
    nc: Annotated[int, Field(gt=0, le=MOST_CLASSES)] | None = None
    kpt_shape: tuple[int, int] | None = None
    flip_idx: list[int] | None = None
    kpt_names: Any = None
    kpt_sigmas: list[Annotated[float, Field(gt=0)]] | None = None
    """OKS falloff per keypoint. Default: COCO's for 17 points, else 1/points each."""
    skeleton: list[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]] | None = None
    """Pairs of points, counted from 0, that a line joins in pictures; [] for none. Default: that of a COCO json, else
    COCO's for 17 points."""
    tasks: list[Literal["detect", "segment", "keypoint"]] | None = None
    """What the images are labelled for. Default: what the label files hold."""
    join: list[PathText] = []
    """Further data files; their classes are matched by name."""
    channels: Literal[3] = 3
    """Of the pictures: colours."""
    download: Any = None  # this and what follows is read and ignored: mtyolo fetches nothing
    roboflow: Any = None
    minival: Any = None

    @field_validator("names", mode="before")
    @classmethod
    def _names_are_text(cls, names: Any) -> Any:
        if names is not None and (isinstance(names, str) or not isinstance(names, Collection)):
            raise ValueError(f"expected a list of class names, or {{0: person, …}}, got {names!r}")
        for name in names.values() if isinstance(names, Mapping) else names or ():
            if not isinstance(name, str):
                raise ValueError(f"the class name {name!r} is no text; quote what YAML takes for something else: 'yes'")
            if not name.strip():
                raise ValueError("a class name is empty; give each class its name")
        return names

    @field_validator("names")
    @classmethod
    def _names_have_no_gap(cls, names: dict[int, str] | list[str] | None) -> dict[int, str] | None:
        if names is None:
            return None
        named = dict(enumerate(names)) if isinstance(names, list) else names
        missing = sorted(set(range(len(named))) - set(named))
        if missing:
            raise ValueError(f"class numbers must run 0 to {len(named) - 1} without a gap; {missing[0]} is missing")
        twice = next((name for name, count in Counter(named.values()).items() if count > 1), None)
        if twice is not None:
            raise ValueError(f"two classes are called {twice!r}; give each its own name, or leave one out")
        return dict(sorted(named.items()))

    @model_validator(mode="after")
    def _counts_agree(self) -> DataConfig:
        if self.names is None and self.nc is None and not self.annotations and not self.join:
            raise ValueError("neither names nor nc says which classes there are; add names: {0: person, …}")
        if self.names is not None and self.nc is not None and self.nc != len(self.names):
            raise ValueError(f"nc says {self.nc} classes, names lists {len(self.names)}; make them agree or drop nc")
        if self.kpt_shape is not None:
            points, values = self.kpt_shape
            if points < 1 or values not in (2, 3):
                raise ValueError(f"kpt_shape is [points, 2 or 3], got [{points}, {values}]")
            if mistake := self.mistake_about(points, "kpt_shape"):
                raise ValueError(mistake[1])
        return self

    def mistake_about(self, points: int, source: str) -> tuple[str, str] | None:
        """A key that does not go with so many points, and why. source: what says how many."""
        if self.flip_idx is not None and sorted(self.flip_idx) != list(range(points)):
            return "flip_idx", (
                f"flip_idx has {len(self.flip_idx)} entries and {source} {points} points; "
                f"it must name each of 0..{points - 1} once: the point that each becomes in a mirror"
            )
        if self.kpt_sigmas is not None and len(self.kpt_sigmas) != points:
            entries = len(self.kpt_sigmas)
            return "kpt_sigmas", f"kpt_sigmas has {entries} entries and {source} {points} points; give one for each"
        if (last := max((point for pair in self.skeleton or () for point in pair), default=0)) >= points:
            return "skeleton", f"skeleton joins point {last} and {source} {points} points; count them from 0"
        return None
