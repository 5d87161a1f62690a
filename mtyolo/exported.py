"""A network that was exported to ONNX, run by onnxruntime: it finds, and is judged, as the model that it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtyolo.config.model import KeypointConfig
from mtyolo.config.strict import Strict
from mtyolo.errors import CheckpointError, ConfigError, DataError
from mtyolo.files import existing
from mtyolo.structures import Detections, KeypointOutputs, Letterbox, MaskOutputs, Outputs, Pyramid
from mtyolo.tasks.instances import instances

DESCRIPTION = "mtyolo"
"""Of the description among a file's metadata."""
IMAGES, FEATURES = "images", "features."
"""What goes in: images, or features by their stride, as `features.8`."""
INSTALL = "pip install 'mtyolo[export]'"


class Description(Strict):
    """What a file does not say in its tensors."""

    format: Literal["mtyolo-onnx/1"] = "mtyolo-onnx/1"
    names: dict[int, str]
    strides: list[int]
    """Of the branches' maps, fine to coarse."""
    largest_stride: int
    size: int
    """Side of the square network input, in pixels."""
    batch: int | None
    """So many images at once; None: as many as one likes."""
    inputs: dict[str, list[int]]
    """Name -> shape without the batch."""
    keypoint: KeypointConfig | None = None

    @property
    def takes_images(self) -> bool:
        return IMAGES in self.inputs


class ExportedModel(nn.Module):
    """What `mtyolo.predict` and `mtyolo.validate` need of a model. It has no weights of its own and does not train."""

    def __init__(self, path: Path, session: Any, description: Description) -> None:
        super().__init__()
        self.path = path
        self.session = session
        self.description = description
        self.names = dict(description.names)
        self.outputs = [output.name for output in session.get_outputs()]
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # where outputs are wanted: moved by `to`

    @property
    def tasks(self) -> tuple[str, ...]:
        told = {"detect": "decoded", "segment": "prototypes", "keypoint": "points"}
        return tuple(task for task, output in told.items() if output in self.outputs)

    @property
    def largest_stride(self) -> int:
        return self.description.largest_stride

    @property
    def usual_size(self) -> int:
        return self.description.size

    @property
    def keypoint(self) -> KeypointConfig | None:
        return self.description.keypoint

    @property
    def keypoints(self) -> int | None:
        return self.keypoint.points if self.keypoint else None

    def forward(self, images: Tensor | None = None, *, pyramid: Pyramid | None = None) -> Outputs:
        """As `Model.forward`, but for `detect`: a single level of decoded rows. Raises DataError or ConfigError for
        what the file does not take."""
        given = self._checked(images, pyramid)
        return _as_outputs({name: tensor.to(self.place.device) for name, tensor in self.run(given).items()})

    def decode(self, outputs: Outputs) -> Tensor:
        """[B, rows, 5 + classes], as `Model.decode`."""
        return outputs.detect[0].flatten(1, 3)

    def detections(
        self, outputs: Outputs, letterboxes: Sequence[Letterbox] | None = None, **options: Any
    ) -> list[Detections]:
        """As `Model.detections`. options: confidence, iou and limit."""
        place: dict[str, Any] = {"size": (self.usual_size, self.usual_size), "letterboxes": letterboxes}
        with torch.no_grad():
            return instances(outputs, self.decode(outputs), keypoint=self.keypoint, **place, **options)

    def _checked(self, images: Tensor | None, pyramid: Pyramid | None) -> dict[str, Tensor]:
        """What goes in, by name."""
        takes_images = self.description.takes_images
        if (images is not None) != takes_images or (pyramid is None) != takes_images:
            kind = "images" if takes_images else f"features, from Python as pyramid={{{self._levels()}}}"
            raise ConfigError(
                f"{self.path}: was exported for {kind}; give these alone, or export it again with other inputs"
            )
        if pyramid is not None and not isinstance(pyramid, Mapping):
            raise DataError(f"{self.path}: expected features as {{{self._levels()}}}, got {type(pyramid).__name__}")
        levels = {f"{FEATURES}{stride}": level for stride, level in (pyramid or {}).items()}
        given: Mapping[str, Any] = levels if images is None else {IMAGES: images}
        checked = {name: self._tensor(name, given.get(name)) for name in self.description.inputs}
        counts = {name: len(tensor) for name, tensor in checked.items()}
        if len(set(counts.values())) > 1 or 0 in counts.values():
            raise DataError(f"{self.path}: expected the same number of each, at least one, got so many: {counts}")
        return checked

    def _tensor(self, name: str, given: object) -> Tensor:
        """What is given for an input, if it can be that. Raises DataError."""
        if not isinstance(given, Tensor) or not given.is_floating_point():
            found = given.dtype if isinstance(given, Tensor) else type(given).__name__
            raise DataError(f"{self.path}: {name}: expected a tensor of floats, images in 0..1, got {found}")
        shape = self.description.inputs[name]
        if list(given.shape[1:]) != shape:
            raise DataError(
                f"{self.path}: {name}: expected [B, {', '.join(map(str, shape))}], got {list(given.shape)}; it was "
                f"exported for {self.usual_size} pixels: keep to these, or export it again with another imgsz"
            )
        return given

    def _levels(self) -> str:
        return ", ".join(f"{name.removeprefix(FEATURES)}: …" for name in self.description.inputs)

    def run(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The file as it is: its inputs, and its outputs, by name."""
        count = len(next(iter(given.values())))
        step = self.description.batch or count
        parts = [self._run_once(given, slice(start, start + step)) for start in range(0, count, step)]
        return {name: torch.cat([part[name] for part in parts])[:count] for name in self.outputs}

    def _run_once(self, given: Mapping[str, Tensor], images: slice) -> dict[str, Tensor]:
        """A last part that is too small for a fixed batch is filled up with nothing."""
        feed = {}
        for name, tensor in given.items():
            part = tensor[images].detach().float().cpu()
            lacking = (self.description.batch or len(part)) - len(part)
            feed[name] = torch.cat((part, part.new_zeros(lacking, *part.shape[1:]))).numpy()
        found = self.session.run(self.outputs, feed)
        return {name: torch.from_numpy(array) for name, array in zip(self.outputs, found, strict=True)}


def open_exported(path: Path | str, *, accelerated: bool = True) -> ExportedModel:
    """A file that `mtyolo.export` wrote. Raises CheckpointError for others, ConfigError without onnxruntime.

    accelerated: on a GPU where onnxruntime has one, which rounds more than single precision does (TF32).
    """
    path = existing(path)
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(f"{path}: is run by onnxruntime, which is not installed: {INSTALL}") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    gpu = accelerated and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    providers = [*(["CUDAExecutionProvider"] if gpu else []), "CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=providers)
    except Exception as error:  # its errors have no class in common
        raise CheckpointError(f"{path}: damaged, or no ONNX file: {' '.join(str(error).split())}") from None
    text = session.get_modelmeta().custom_metadata_map.get(DESCRIPTION)
    if text is None:
        raise CheckpointError(f"{path}: was not written by mtyolo export, and does not say what its outputs are")
    try:
        return ExportedModel(path, session, Description.model_validate(json.loads(text)))
    except ValueError as error:  # pydantic's are ValueErrors, json's too
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: does not say what it holds: {reason}; was it written by a newer mtyolo?"
        ) from None


def _as_outputs(found: Mapping[str, Tensor]) -> Outputs:
    """Rows of all levels as those of a single one with a cell each."""
    rows = {name: [found[name][:, None, None]] for name in ("decoded", "coefficients", "points") if name in found}
    segment = MaskOutputs(rows["coefficients"], found["prototypes"]) if "prototypes" in found else None
    keypoint = KeypointOutputs(rows["points"], found.get("heatmaps")) if "points" in rows else None
    return Outputs({}, {}, rows["decoded"], segment, keypoint)
