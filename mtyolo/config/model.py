"""The model file: extractor, adapters, detector, tasks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mtyolo.config.strict import PathText, Positive, Strict

KNOWN = {"extractors": ("timm", "features"), "adapters": ("identity", "conv", "pyramid", "fusion")}
"""What a model file can name without a class of anybody's own."""

ClassNumber = Annotated[int, Field(ge=0)]

LARGEST_SIDE = 16384
"""Pixels of the network input: a slip of the keyboard is named before it asks for all memory."""
USUAL_SIDE = 640
"""Pixels of the network input where a model does not know its own; official checkpoints were trained at it."""
LARGEST_SEED = 2**32 - 1
"""What numpy takes."""


class Normalisation(Strict):
    """Per-channel mean and standard deviation of pixels in 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class ExtractorConfig(Strict):
    """From images to features, or the description of features made elsewhere."""

    name: str
    """timm/<model>, `features` (given from outside, needs `levels`), or package.module:Class."""
    weights: PathText = "imagenet"
    """imagenet (timm's default weights from the model hub), none, or a path to .safetensors or .pth. Your own class
    fills itself, unless a path is named."""
    strides: tuple[Positive, ...] | None = None
    """Which levels to take. Default: those the detector's entry asks for, as far as the extractor has them."""
    levels: dict[Positive, Positive] | None = None
    """Only for `features`: stride -> channels of what will be given."""
    normalisation: Normalisation | None = None
    """Default: what the extractor was trained with."""
    arguments: dict[str, Any] = {}
    """Further arguments of the timm model or class."""

    @property
    def imports(self) -> bool:
        """Is it a class of a user's own, named as package.module:Class?"""
        return ":" in self.name

    @model_validator(mode="after")
    def _levels_belong_to_features(self) -> ExtractorConfig:
        if self.name == "features" and not self.levels:
            raise ValueError("features from outside need their levels, for example levels: {8: 64, 16: 128, 32: 256}")
        if self.name != "features" and self.levels:
            raise ValueError(f"levels are read from {self.name} itself; give them only with name: features")
        return self


class AdaptersConfig(Strict):
    """From the extractor's features to the tensors that the replaced layers would have produced."""

    type: str = "conv"
    """identity, conv, pyramid, fusion, or package.module:Class."""
    depth: Positive | None = None
    """Convolutions in a row. Default: the type's own, 1 for conv, 2 for pyramid and fusion."""
    width: Annotated[int, Field(ge=1, le=64)] | None = None
    """fusion: channels in between, as a multiple of an output's; above 1 the output is a linear map of them."""
    norm: Literal["batch", "group", "none"] = "batch"
    match_statistics: bool = False
    """Set the output's per-channel mean and variance to those of the replaced layer, over a few batches."""
    arguments: dict[str, Any] = {}

    @model_validator(mode="after")
    def _sizes_have_their_place(self) -> AdaptersConfig:
        if self.width is not None and self.type != "fusion":
            raise ValueError(f"width is of type: fusion; {self.type} has none, so take width out")
        sizes = {key: self.arguments[key] for key in ("depth", "width") if key in self.arguments}
        for key, size in sizes.items():
            if self.type in ("conv", "pyramid", "fusion") and (type(size) is not int or size < 1):
                raise ValueError(f"arguments: {key}: {size!r}: expected a whole number from 1")
        return self


class DetectorConfig(Strict):
    """The YOLOv5 layer list, its weights, and where features enter it."""

    graph: PathText | dict[str, Any]
    """A YOLOv5-style file; or, in saved weights, its content."""
    weights: PathText | None = None
    entry: dict[int | Literal["input"], Positive] | None = None
    """Layer number -> stride. Default: the outputs that the neck takes from the backbone. `input`: the first layer."""


class DetectConfig(Strict):
    pass


class SegmentConfig(Strict):
    prototypes: Positive = 32
    channels: Positive | None = None
    """Width inside the prototype network. Default: 256 times the graph's width multiple, as official files have it."""


class KeypointConfig(Strict):
    points: Positive | None = None
    """Default: the data set's kpt_shape, or COCO's 17."""
    heatmaps: bool = True
    """Find points in maps of the picture, near where the anchors take them to be; or by the anchors alone."""
    classes: list[ClassNumber] | None = None
    """Numbers of the classes whose objects have points; those of others are not visible. Default: all, until training
    has seen which have some in the labels."""
    sigmas: list[Annotated[float, Field(gt=0)]] | None = None
    """How exactly each point is placed, as kpt_sigmas of the data, from which training takes it. Default: COCO's for 17
    points, else 1 / points."""
    skeleton: list[tuple[int, int]] | None = None
    """Pairs of points that pictures join, as in the data, from which training takes it."""


class TasksConfig(Strict):
    """Branches beside each other on the same anchors. Masks and keypoints belong to boxes: detect is always there."""

    detect: DetectConfig = DetectConfig()
    segment: SegmentConfig | None = None
    keypoint: KeypointConfig | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _empty_means_default(cls, value: Any, info: Any) -> Any:
        # `segment:` with nothing behind it reads as None in YAML, and means the defaults to a person.
        return {} if value is None else value

    def names(self) -> tuple[str, ...]:
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)


class ModelConfig(Strict):
    """A whole model file."""

    extractor: ExtractorConfig | None = None
    adapters: AdaptersConfig = AdaptersConfig()
    detector: DetectorConfig
    tasks: TasksConfig | None = None
    """Default: what the graph's last layer does (detect; detect and segment for -seg graphs)."""
    names: dict[int, str] | None = None
    """Class names; a list counts from 0. Default: the data set's, or the checkpoint's, or the graph's numbers."""
    imgsz: Annotated[int, Field(gt=0, le=LARGEST_SIDE)] | None = None
    """Pixels a side of the network input that it was trained at, which training notes: val and predict take it."""
    unknown_classes: list[str] | None = None
    """Names of classes that nothing has taught the detect branch yet, as when adapters were aligned first; noted for
    whoever goes on with these weights."""

    @field_validator("names", mode="before")
    @classmethod
    def _a_list_counts_from_zero(cls, names: Any) -> Any:
        return dict(enumerate(names)) if isinstance(names, list) else names

    @property
    def imports(self) -> bool:
        """Does it name classes of a user's own, as package.module:Class?"""
        return ":" in self.adapters.type or (self.extractor is not None and self.extractor.imports)

    @property
    def by_name(self) -> dict[str, str]:
        """Classes that only Python can give: the argument that does -> their name there."""
        kind = "timm" if self.extractor is None else self.extractor.name.split("/")[0]
        named = {"extractors": kind, "adapters": self.adapters.type}
        return {key: name for key, name in named.items() if name not in KNOWN[key] and ":" not in name}

    def with_keypoints_of(
        self, classes: Iterable[int], sigmas: list[float] | None, skeleton: list[tuple[int, int]] | None
    ) -> ModelConfig:
        """The same where these classes have points, if any, beside those that had some before; with these sigmas, and
        joined like this in pictures, or as before where that is not known."""
        if self.tasks is None or self.tasks.keypoint is None or not (found := set(classes)):
            return self
        known = sorted(found.union(self.tasks.keypoint.classes or ()))
        joined = self.tasks.keypoint.skeleton if skeleton is None else skeleton
        update = {"classes": known, "sigmas": sigmas, "skeleton": joined}
        keypoint = self.tasks.keypoint.model_copy(update=update)
        return self.model_copy(update={"tasks": self.tasks.model_copy(update={"keypoint": keypoint})})

    def with_unknown(self, classes: Iterable[str]) -> ModelConfig:
        """The same, which does not know these classes."""
        return self.model_copy(update={"unknown_classes": list(classes) or None})

    def with_size(self, imgsz: int) -> ModelConfig:
        """The same, trained at this size."""
        return self.model_copy(update={"imgsz": imgsz})

    def with_known_adapters(self) -> ModelConfig:
        """The same where adapters have a start, or have learned: statistics are matched once, before all else."""
        return self.model_copy(update={"adapters": self.adapters.model_copy(update={"match_statistics": False})})


def resolve_beside(name: str, document: Path) -> Path | None:
    """A file named in a YAML file: as given, beside that file, or shipped with mtyolo. None if nowhere."""
    shipped = shipped_configs()
    for candidate in (document.parent / name, Path(name), shipped / name, shipped / "plans" / name):
        if _is_file(candidate):
            return candidate
    return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for one
        return False


def whole_path(name: str, file: Path, *, folders: bool = False) -> str:
    """The whole path of a file that a YAML file names, beside it or where one stands; the name alone where there is
    none. folders: saved outputs of a teacher are one."""
    found = resolve_beside(name, file)
    if found is None and folders and name:
        found = next((path for path in (file.parent / name, Path(name)) if path.is_dir()), None)
    return str(found.absolute()) if found else name


def shipped_configs() -> Path:
    """The folder of YAML files that come with mtyolo: in the package once installed, else in the checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "model_cfgs"
    return inside if inside.is_dir() else package.parent / "model_cfgs"
