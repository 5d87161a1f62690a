"""What is exported: a model as a function of tensors alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mtyolo.errors import ConfigError
from mtyolo.exported import FEATURES, IMAGES
from mtyolo.extractors.base import GivenFeatures
from mtyolo.model import Model
from mtyolo.structures import Outputs
from mtyolo.tasks.maps import joined_rows


class Exportable(nn.Module):
    """From images, or features, to the outputs of a file.

    strides: of the features that go in; empty: images do.
    """

    def __init__(self, model: Model, strides: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.strides = tuple(strides)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """inputs: images [B, 3, H, W], or a map a stride."""
        return tuple(self.named(inputs).values())

    def named(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        given = {"pyramid": dict(zip(self.strides, inputs, strict=True))} if self.strides else {"images": inputs[0]}
        return named_outputs(self.model, self.model(**given))


def named_outputs(model: Model, outputs: Outputs) -> dict[str, Tensor]:
    """Name -> tensor, in the order of a file; R rows in the order of the decoded output.

    decoded [B, R, 5 + classes]. coefficients [B, R, P] and prototypes [B, P, H/4, W/4]: a mask is sigmoid(coefficients
    of its row . prototypes). points [B, R, 3 * K]: x and y of each point in boxes from the box's centre, logit of
    visibility; heatmaps [B, K, h, w]: logits of where in the picture each point is.
    """
    found = {"decoded": model.decode(outputs)}
    if outputs.segment is not None:
        found |= {"coefficients": joined_rows(outputs.segment.coefficients), "prototypes": outputs.segment.prototypes}
    if outputs.keypoint is not None:
        found["points"] = joined_rows(outputs.keypoint.points)
        found |= {} if outputs.keypoint.heatmaps is None else {"heatmaps": outputs.keypoint.heatmaps}
    return found


def inputs_of(model: Model, kind: str | None, size: int) -> dict[str, list[int]]:
    """Name -> shape without the batch. kind: images, features, or None for images where the model takes them.

    Raises ConfigError for what this model does not take.
    """
    given = isinstance(model.extractor, GivenFeatures)
    if kind not in (None, "images", "features"):
        raise ConfigError(f"inputs={kind!r}: expected images or features")
    if kind == "images" and given:
        raise ConfigError("inputs: this model takes features; leave it out, or name an extractor in its model file")
    if kind == "features" and model.extractor is None:
        raise ConfigError("inputs: this model has no extractor, so it takes images and not features; leave it out")
    features = kind == "features" or given
    if features and model.graph.needs_images:
        raise ConfigError(
            "inputs: layers before the entry still need the images, so that features alone do not do; take images, or "
            "replace more layers"
        )
    if features:
        levels = sorted(getattr(model.extractor, "levels", ()))
        return {f"{FEATURES}{one.stride}": [one.channels, size // one.stride, size // one.stride] for one in levels}
    return {IMAGES: [3 if model.extractor is not None else model.graph.levels[-1].channels, size, size]}


def strides_in(inputs: Mapping[str, object]) -> list[int]:
    """Of features; none for images."""
    return [int(name.removeprefix(FEATURES)) for name in inputs if name.startswith(FEATURES)]
