"""Teachers: any model as a source of raw outputs and features in the student's layout, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtyolo.checkpoint import load
from mtyolo.config.distill import TeacherConfig
from mtyolo.config.model import KeypointConfig, resolve_beside
from mtyolo.distill.classes import class_columns
from mtyolo.distill.conversion import Source, in_layout, layout_of
from mtyolo.distill.features import pooled
from mtyolo.distill.layout import Shape
from mtyolo.errors import CheckpointError, ConfigError, DataError
from mtyolo.extractors.base import GivenFeatures
from mtyolo.graph.families import FamilyModel, is_family, open_family
from mtyolo.graph.network import INPUT
from mtyolo.model import Model
from mtyolo.structures import Outputs
from mtyolo.tasks.detect.decode import decode

CLASSLESS_TERMS = {"masks", "keypoints"}
"""A teacher of people can teach points to a student that knows more than people."""


class Lesson(NamedTuple):
    """What a teacher says about a batch."""

    outputs: Outputs  # in the student's layout; `adapted` and `fused` are empty
    features: dict[int, Tensor]  # number of the teacher's layer -> [B, C, H, W]; saved ones in half precision


Answer = Callable[[], Lesson]
"""To be called when the lesson is needed."""

Own = Mapping[str, Any]
"""Classes of a user's own by name, and trust, as `checkpoint.load` takes them."""


class NoLesson(DataError):
    """A folder that teaches alone does not know a picture. number: its place in the batch."""

    def __init__(self, folder: Path, key: str, number: int) -> None:
        super().__init__(
            f"{folder}: has no outputs for one of the pictures ({key}); save outputs of these very pictures: same "
            "size, and no random augmentation"
        )
        self.number = number


class Teacher(nn.Module):
    """A frozen model that speaks the student's layout; to a validation it is a model like any other.

    columns: for each class of the student, the teacher's; None where it knows none.
    size: side of the teacher's input, by default the images' own.
    pool: features are means of so many positions each way.
    """

    def __init__(
        self,
        source: Source,
        student: Model,
        columns: Sequence[int | None],
        size: int | None = None,
        pool: int = 1,
    ) -> None:
        super().__init__()
        self.source = source.requires_grad_(False).eval()
        self.columns = tuple(columns)
        self.size = size
        self.pool = pool
        self.names = dict(student.names)
        self.layout = layout_of(student)
        self.recorded: dict[int, nn.Module] = {}
        self.tasks, self.keypoint = _abilities(source)

    @property
    def keypoints(self) -> int | None:
        return self.keypoint.points if self.keypoint else None

    @property
    def strides(self) -> list[int]:
        return list(self.layout.strides)

    @property
    def anchors(self) -> Tensor:
        return self.layout.anchors

    @property
    def largest_stride(self) -> int:
        return self.source.largest_stride

    def train(self, mode: bool = True) -> Teacher:
        return super().train(False)

    def record(self, layers: Sequence[int]) -> dict[int, int]:
        """From now on lessons have the outputs of these layers. Returns their channels.

        Raises ConfigError for a layer that is not there, or is the head.
        """
        self.recorded = {number: layer_of(self.source, number) for number in layers}
        side = 2 * self.largest_stride
        nothing = torch.zeros(1, 3, side, side, device=next(self.source.parameters()).device)
        with torch.no_grad(), recording(self.recorded) as seen:
            self.source(nothing)
        head = next((number for number, features in seen.items() if not isinstance(features, Tensor)), None)
        if head is not None:
            raise ConfigError(
                f"distill: features: layer {head} of the teacher is its head and gives no feature map; name one before "
                f"it, such as {neck_of(self.source)[-1]}"
            )
        return {number: features.shape[1] for number, features in seen.items()}

    def decode(self, outputs: Outputs) -> Tensor:
        return decode(outputs.detect, self.anchors, self.strides)

    def forward(self, images: Tensor) -> Outputs:
        """images: [B, 3, H, W] RGB in 0..1, the student's."""
        return self.lesson(images).outputs

    @torch.no_grad()
    def lesson(self, images: Tensor) -> Lesson:
        """Outputs and features of a batch; computed in half precision on a GPU, elsewhere in the run's."""
        own = self._own_pixels(images)
        half = torch.autocast("cuda", torch.float16) if images.device.type == "cuda" else nullcontext()
        with half, recording(self.recorded) as seen:
            raw = self.source(own)
        features = {number: pooled(features.detach().float(), self.pool) for number, features in seen.items()}
        outputs = in_layout(raw, self.source, self.layout, self.columns, _shape(own), _shape(images))
        return Lesson(outputs, features)

    def _own_pixels(self, images: Tensor) -> Tensor:
        if self.size is None or max(images.shape[-2:]) == self.size:
            return images
        scale = self.size / max(images.shape[-2:])
        size = [round(side * scale) for side in images.shape[-2:]]
        return F.interpolate(images, size, mode="bilinear", antialias=scale < 1)


def open_teacher(config: TeacherConfig, student: Model, imgsz: int, own: Own | None = None) -> Teacher:
    """The model that a plan names, ready for the student. own: classes by name, and trust, as `load` takes them.

    Raises ConfigError where classes do not match or the input does not fit; CheckpointError for the file.
    """
    source = open_source(config, own)
    all_needed = bool(set(config.output) - CLASSLESS_TERMS)
    columns = class_columns(config, student.names, source.names, all_needed=all_needed)
    teacher = Teacher(source, student, columns, config.size, config.pool)
    side = config.size or imgsz
    if side % teacher.largest_stride:
        raise ConfigError(
            f"teacher {config.weights}: {side} pixels is no multiple of its largest stride {teacher.largest_stride}; "
            "give it a size of its own"
        )
    missing = next((stride for stride in student.strides if stride not in source.strides), None)
    if missing is not None:
        raise ConfigError(
            f"teacher {config.weights}: its head has strides {sorted(source.strides)}, none at the student's "
            f"{missing}; take a teacher with the student's strides"
        )
    return teacher


def open_source(config: TeacherConfig, own: Own | None = None) -> Source:
    """The model itself. Raises CheckpointError for the file, ConfigError for one that sees no pictures."""
    path = resolve_beside(config.weights, Path("plan.yaml")) or Path(config.weights)
    try:
        if config.graph is not None or (path.suffix in (".pt", ".pth") and is_family(path)):
            return open_family(path, config.graph)
        model = load(path, **(own or {}))
    except CheckpointError as error:
        kept = "" if path.exists() else "; put it there, as a resumed run keeps the plan of its start"
        raise CheckpointError(f"teacher {error}{kept}") from None
    if isinstance(model.extractor, GivenFeatures):
        raise ConfigError(
            f"teacher {config.weights}: takes features of another program, and teachers look at pictures; name one "
            "that takes images, or a folder of saved outputs"
        )
    return model


def neck_of(model: Source) -> tuple[int, ...]:
    """Numbers of the layers that the branches take, fine to coarse."""
    if isinstance(model, FamilyModel):
        return model.neck
    return tuple(sorted(model.graph.wanted, key=lambda number: model.graph.levels[number].stride))


def layer_of(model: Source, number: int) -> nn.Module:
    """Raises ConfigError for a layer that the model does not have, or that features replace."""
    if isinstance(model, FamilyModel):
        try:
            return model.layer(number)
        except AttributeError:
            neck = ", ".join(map(str, model.neck))
            raise ConfigError(f"distill: features: the teacher has no layer {number}; its head takes {neck}") from None
    layers = model.graph.layers
    if str(number) not in layers:
        raise ConfigError(f"distill: features: layer {number} is not built in this model; it has {', '.join(layers)}")
    return layers[str(number)]


def replaced_layers(student: Model) -> dict[int, int]:
    """Layers whose output an adapter gives -> its stride."""
    return {int(layer): stride for layer, stride in student.graph.entry.items() if layer != INPUT}


@contextmanager
def recording(modules: Mapping[int, nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Outputs of these modules in the forward passes inside."""
    seen: dict[int, Tensor] = {}

    def keeper(number: int) -> object:
        return lambda module, inputs, output: seen.__setitem__(number, output)

    hooks = [module.register_forward_hook(keeper(number)) for number, module in modules.items()]  # type: ignore[arg-type]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _abilities(source: Source) -> tuple[tuple[str, ...], KeypointConfig | None]:
    """Tasks, and what is known of points; not of which classes, as it numbers them in its own way."""
    if isinstance(source, Model):
        return source.tasks, source.keypoint and source.keypoint.model_copy(update={"classes": None})
    further = ("segment",) * source.has_masks + ("keypoint",) * (source.points is not None)
    return ("detect", *further), KeypointConfig(points=source.points) if source.points else None


def _shape(images: Tensor) -> Shape:
    return images.shape[-2], images.shape[-1]
