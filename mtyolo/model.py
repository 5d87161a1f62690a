"""The model: extractor, adapters, graph, branches. Its forward is the architecture figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, channels_last, nn

from mtyolo.config.model import USUAL_SIDE, KeypointConfig, ModelConfig
from mtyolo.config.reading import nearest
from mtyolo.errors import ConfigError, DataError
from mtyolo.extractors.base import features_of
from mtyolo.extractors.checking import check_pyramid
from mtyolo.graph.network import Graph
from mtyolo.structures import Batch, Detections, Letterbox, Outputs, Pyramid
from mtyolo.tasks.detect.decode import decode
from mtyolo.tasks.instances import instances

Size = tuple[int, int]

PARTS = ("extractor", "adapters", "detector", "detector.backbone", "detector.neck", "detect", "segment", "keypoint")
"""Names that a plan can train or freeze; `detector.17` names a single layer."""


class Model(nn.Module):
    """A multi-task YOLOv5 on images or features.

    extractor, adapters: None where the graph's own backbone sees the images.
    branches: task -> module, detect first. names: class number -> name.
    config: what `save_weights` keeps, so that the same model can be built again.
    """

    def __init__(
        self,
        *,
        extractor: nn.Module | None,
        adapters: nn.Module | None,
        graph: Graph,
        branches: Mapping[str, nn.Module],
        names: Mapping[int, str],
        config: ModelConfig,
    ) -> None:
        super().__init__()
        self.extractor = extractor
        self.adapters = adapters
        self.graph = graph
        self.branches = nn.ModuleDict(branches)
        self.names = dict(names)
        self.config = config

    @property
    def fresh_classes(self) -> tuple[str, ...]:
        """Names that its weights do not know: these rows of the detect branch are random until training reaches it."""
        return tuple(self.config.unknown_classes or ())

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.branches)

    @property
    def strides(self) -> list[int]:
        """Of the branches' maps, fine to coarse."""
        return sorted(level.stride for level in self.graph.wanted_levels)

    @property
    def largest_stride(self) -> int:
        """Input sizes must be a multiple of this."""
        return max(level.stride for level in self.graph.levels.values())

    @property
    def usual_size(self) -> int:
        """Side of the input in pixels, where nobody asks for another: that of its training, as far as it is known."""
        return self.config.imgsz or USUAL_SIDE

    @property
    def anchors(self) -> Tensor:
        """[L, A, 2] width and height in pixels."""
        return self.branches["detect"].get_buffer("anchors")

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that learn; an extractor may have its own."""
        return next(self.branches.parameters()).dtype

    @property
    def keypoint(self) -> KeypointConfig | None:
        """What is known of points; None without a keypoint branch."""
        return self.config.tasks.keypoint if self.config.tasks else None

    @property
    def keypoints(self) -> int | None:
        """Number of points per object, None without a keypoint branch."""
        return self.keypoint.points if self.keypoint else None

    def forward(
        self, images: Tensor | None = None, *, pyramid: Pyramid | None = None, size: Size | None = None
    ) -> Outputs:
        """One pass, raw maps; the same in training and evaluation.

        images: [B, 3, H, W] RGB in 0..1. pyramid: features in place of the extractor's, stride -> [B, C, H/stride,
        W/stride], in any precision. size: (H, W) of the network input, needed only where the pyramid's own sizes do not
        tell.
        Raises DataError for a size that does not fit, ConfigError for an input that this model does not take.
        """
        size = self._input_size(images, pyramid, size)
        if pyramid is not None:  # stores keep half precision, numpy counts in double
            pyramid = self._as_weights(pyramid)
        if images is not None:
            images = images.contiguous(memory_format=channels_last)
        if pyramid is None and self.extractor is not None:
            assert images is not None, "one of the two is there"
            pyramid = features_of(self.extractor, images)
            if images.is_meta or not torch.is_autocast_enabled(images.device.type):  # which brings both together
                pyramid = self._as_weights(pyramid)
        adapted = self.adapters(pyramid, size) if self.adapters is not None else {}
        # Aliases: a fine level is also on the way to the coarse ones, but balancers want each task's gradient on what
        # its branch saw, without that way.
        fused, taken = (
            {stride: features.view_as(features) for stride, features in levels.items()}
            for levels in self.graph.run(images, adapted)
        )
        found = {task: branch(fused, taken) for task, branch in self.branches.items()}
        return Outputs(adapted, fused, taken=taken if self.keypoint and self.keypoint.heatmaps else None, **found)

    def decode(self, outputs: Outputs) -> Tensor:
        """The classic [B, sum(A*H*W), 5 + classes]: xywh in input pixels, then sigmoid scores."""
        return decode(outputs.detect, self.anchors, self.strides)

    def detections(
        self,
        outputs: Outputs,
        letterboxes: Sequence[Letterbox] | None = None,
        *,
        confidence: float = 0.25,
        iou: float = 0.45,
        limit: int = 300,
    ) -> list[Detections]:
        """Boxes, masks and keypoints of each image of a batch, best first, without gradients.

        letterboxes: how each image was fitted into the input (a batch's, or of `mtyolo.geometry.letterbox_of`); with
        them all is in pixels of the original images, else in those of the input. confidence, iou, limit: least score,
        non-maximum suppression within a class, most detections of an image.
        Raises DataError where images and letterboxes differ in number.
        """
        height, width = outputs.detect[0].shape[2:4]
        finest = self.strides[0]
        with torch.no_grad():
            return instances(
                outputs,
                self.decode(outputs),
                size=(height * finest, width * finest),
                confidence=confidence,
                iou=iou,
                limit=limit,
                letterboxes=letterboxes,
                keypoint=self.keypoint,
            )

    def part(self, name: str) -> list[tuple[str, nn.Module]]:
        """A part's modules with their prefix in `state_dict`. Raises ConfigError for a name that matches nothing."""
        found = [(prefix, module) for prefix, module in self._part(name) if module is not None]
        if not found:
            known = [part for part in PARTS if any(module is not None for _, module in self._part(part))]
            layers = [f"detector.{layer}" for layer in self.graph.layers]
            raise ConfigError(f"this model has no part {name!r}; {nearest(name, [*known, *layers], limit=len(known))}")
        return found

    def _part(self, name: str) -> list[tuple[str, nn.Module | None]]:
        branches = dict(self.branches.items())
        detect = ("branches.detect", branches["detect"])
        if name in ("extractor", "adapters"):
            return [(name, getattr(self, name))]
        if name == "detector":
            return [("graph", self.graph), detect]
        if name in PARTS and not name.startswith("detector."):
            return [(f"branches.{name}", branches.get(name))]
        head, length = self.graph.spec.head.number, self.graph.spec.backbone_length
        if name == f"detector.{head}":
            return [detect]
        wanted = {
            "detector.backbone": lambda number: number < length,
            "detector.neck": lambda number: number >= length,
        }.get(name, lambda number: f"detector.{number}" == name)
        return [(f"graph.layers.{key}", layer) for key, layer in self.graph.layers.items() if wanted(int(key))]

    def _as_weights(self, pyramid: Pyramid) -> Pyramid:
        return {stride: features.to(self.dtype) for stride, features in pyramid.items()}

    def _input_size(self, images: Tensor | None, pyramid: Pyramid | None, size: Size | None) -> Size:
        if images is None and pyramid is None:
            raise ConfigError("give images, or pyramid={stride: features, …}")
        if pyramid is not None:
            if self.adapters is None or self.extractor is None:
                raise ConfigError("this model takes images; name an extractor in its YAML to let features enter")
            if images is None and self.graph.needs_images:
                raise ConfigError(
                    "layers before the entry still need the images: give them beside the pyramid, or replace more"
                )
            levels = getattr(self.extractor, "levels", ())
            given = (images.shape[-2], images.shape[-1]) if images is not None else size
            size = check_pyramid(pyramid, levels, given)
        if images is not None:
            size = self._image_size(images)
        assert size is not None
        self._check_multiple(size)
        return size

    def _image_size(self, images: Tensor) -> Size:
        if not isinstance(images, Tensor):
            raise DataError(
                f"expected images as a tensor [B, 3, H, W], got {type(images).__name__}; features come by name: "
                "model(pyramid={8: …, 16: …, 32: …}), pictures through mtyolo.predict"
            )
        expected = 3 if self.extractor is not None else self.graph.levels[-1].channels
        if images.ndim != 4 or images.shape[1] != expected:
            raise DataError(f"expected images [B, {expected}, H, W], got {list(images.shape)}")
        if not images.is_floating_point():
            raise DataError(f"expected images as floats in 0..1, got {images.dtype}; divide by 255")
        # Before weights in single precision an extractor makes of images what it likes.
        alike = images.is_meta or images.dtype == self.dtype or (self.extractor and self.dtype == torch.float32)
        if not alike and not torch.is_autocast_enabled(images.device.type):  # which brings both together
            raise DataError(
                f"the images are {images.dtype}, the weights {self.dtype}: bring both together; validation and "
                "prediction give float32, for which model.float() is the remedy"
            )
        return images.shape[-2], images.shape[-1]

    def _check_multiple(self, size: Size) -> None:
        stride = self.largest_stride
        if any(side % stride for side in size):
            fitting = "x".join(str(max(1, round(side / stride)) * stride) for side in size)
            raise DataError(
                f"an input of {size[0]}x{size[1]} pixels does not divide into cells of {stride}; letterbox it to a "
                f"multiple of {stride}, for example {fitting} (mtyolo predict and val do this by themselves)"
            )


def forward(model: nn.Module, batch: Batch) -> Outputs:
    """A batch of pictures (uint8), of stored features, or of both through the model."""
    images = None if batch.images is None else pixels(batch.images)
    # Teachers and others who are validated like a model take images alone.
    outputs: Outputs = model(images) if batch.pyramid is None else model(images, pyramid=batch.pyramid)
    return outputs


def pixels(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> floats in 0..1 in channels-last memory."""
    return images.float().div_(255).contiguous(memory_format=channels_last)
