"""A model as an ONNX file, which is kept only where onnxruntime finds in it what the model gives."""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtyolo.config.arguments import check_counts, check_paths, check_size
from mtyolo.errors import CheckpointError, ConfigError
from mtyolo.exported import DESCRIPTION, INSTALL, Description, ExportedModel, open_exported
from mtyolo.exporting.network import Exportable, inputs_of, strides_in
from mtyolo.files import exported_name, replacing
from mtyolo.geometry import fitting_side
from mtyolo.model import Model

logger = logging.getLogger(__name__)

EXAMPLES = 2
"""Images that the network is followed with where any number is to do: one would be taken for the only number."""
LARGEST_DIFFERENCE = 1e-3
"""Between an output of the file and the model's, in parts of the largest value there. Single precision gives 1e-6 to
1e-5."""
SMALLEST_VALUE = 1e-6
"""Outputs that are all smaller are compared as they are."""
LARGEST_FILE = 1536 * 2**20
"""Bytes of values in a file: torch puts more of them beside it, where no rename would take them along."""


class Export(NamedTuple):
    """What was written."""

    path: Path
    description: Description
    outputs: dict[str, list[int]]
    """Name -> shape without the batch."""
    differences: dict[str, float]
    """Name -> largest difference to the model's, in parts of the largest value of its kind."""


def export(
    model: Model,
    path: str | Path,
    *,
    size: int | None = None,
    batch: int | None = None,
    inputs: str | None = None,
    opset: int | None = None,
) -> Export:
    """Write a model to an ONNX file, by way of a temporary name. It runs wherever ONNX does; `mtyolo.predict` and
    `mtyolo.validate` take it as they take weights.

    In single precision and evaluation mode; what trains beside a model, as teachers and projectors, is no part of it.
    Non-maximum suppression is left to who reads the outputs, which `mtyolo.exporting.network.named_outputs` explains.
    size: side of the square network input in pixels, rounded up to a multiple of the model's largest stride; by default
    the one that the model was trained at. batch: images at once; by default any number. inputs: images, or features
    for what comes behind the extractor; by default images where the model takes them. opset: version of ONNX's
    operators, by default torch's.
    Raises ConfigError: an argument that can not be meant, a library that is missing, a model that can not be followed
    or is too large; CheckpointError where the model gives no numbers, or the file would give others; MtyoloError where
    nothing can be written.
    """
    path = _checked(model, path, size, batch, opset)
    still = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    described = _described(still, size, batch, inputs)
    network, examples = Exportable(still, strides_in(described.inputs)), _examples(described)
    wanted = _wanted(network, examples)
    if fresh := model.fresh_classes:
        said = "the weights do not know %d of %d classes, first %r; of these the file finds nothing"
        logger.warning(said, len(fresh), len(model.names), fresh[0])
    with replacing(path) as temporary:  # around all that takes long: a place that can not be written to is said before
        program = _followed(network, examples, list(wanted), described, opset)
        program.save(str(temporary), external_data=False)
        differences = compare(open_exported(temporary, accelerated=False), examples, wanted)
        wrong = [name for name, difference in differences.items() if not difference <= LARGEST_DIFFERENCE]
        if wrong:
            raise CheckpointError(
                f"{path}: not written: its {wrong[0]} differ from the model's by {differences[wrong[0]]:.1e} of the "
                "largest value; another version of torch or onnxscript may translate it rightly"
            )
    return Export(path, described, {name: list(tensor.shape[1:]) for name, tensor in wanted.items()}, differences)


def compare(exported: ExportedModel, examples: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, float]:
    """Each output's largest difference to what is wanted, in parts of the largest value there, of its kind."""
    found = exported.run(examples)
    return {name: _difference(_kinds(name, found[name]), _kinds(name, tensor)) for name, tensor in wanted.items()}


def _difference(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    parts = [
        (one - other).abs().max() / other.abs().max().clamp(min=SMALLEST_VALUE)
        for one, other in zip(found, wanted, strict=True)
    ]
    return float(torch.stack(parts).max())  # Python's max would lose a nan


def _kinds(name: str, output: Tensor) -> list[Tensor]:
    """An output's values by what they are: beside hundreds of pixels, a wrong score would be none."""
    return [output[..., :4], output[..., 4:]] if name == "decoded" else [output]


def _checked(model: object, path: str | Path, size: int | None, batch: int | None, opset: int | None) -> Path:
    if not isinstance(model, Model):
        raise ConfigError(f"model: expected a model of mtyolo, got {type(model).__name__}")
    check_paths("path", path=path)
    path = exported_name(path)
    check_size(size)
    check_counts(batch=1 if batch is None else batch, opset=1 if opset is None else opset)
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"export: {name} is not installed: {INSTALL}")
    return path


def _described(model: Model, size: int | None, batch: int | None, inputs: str | None) -> Description:
    side = fitting_side(model.usual_size if size is None else size, model.largest_stride)
    return Description(
        names=model.names,
        strides=model.strides,
        largest_stride=model.largest_stride,
        size=side,
        batch=batch,
        inputs=inputs_of(model, inputs, side),
        keypoint=model.keypoint,
    )


def _examples(described: Description) -> dict[str, Tensor]:
    random, count = torch.Generator().manual_seed(0), described.batch or EXAMPLES
    return {name: torch.rand(count, *shape, generator=random) for name, shape in described.inputs.items()}


def _wanted(network: Exportable, examples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model gives. Raises CheckpointError where that is no numbers, which no file could be held to."""
    wanted = network.named(list(examples.values()))
    wrong = [name for name, tensor in wanted.items() if not tensor.isfinite().all()]
    if wrong:
        raise CheckpointError(
            f"export: the model's {wrong[0]} are not finite: its weights, or what its extractor makes of images, are "
            "damaged; export other weights"
        )
    return wanted


def _followed(
    network: Exportable,
    examples: Mapping[str, Tensor],
    outputs: Sequence[str],
    described: Description,
    opset: int | None,
) -> Any:
    """The ONNX program of a network that is followed with examples. Raises ConfigError where that is not possible."""
    given = list(examples.values())
    shapes = None if described.batch else ([{0: torch.export.Dim("batch", min=1)} for _ in given],)
    names: dict[str, Any] = {"input_names": list(examples), "output_names": list(outputs)}
    try:
        with _quiet():
            # Not strict: as from torch 2.7 on; before, that was not the default.
            program = torch.export.export(network, (given,), dynamic_shapes=shapes, strict=False)
            onnx: Any = torch.onnx.export(program, **names, opset_version=opset, verbose=False)
    except Exception as error:  # its errors, and those of own classes, have no class in common
        hint = "with batch=1, or " if described.batch is None else ""
        raise ConfigError(
            f"export: the model can not be followed: {_first_line(error)}; what an extractor or adapter does may not "
            f"depend on the values of what it is given; try it {hint}with inputs='features', without the extractor"
        ) from error
    _refuse_what_no_file_holds(onnx, opset)
    official = {"names": str(described.names), "stride": str(described.largest_stride)}  # as its programs read them
    onnx.model.metadata_props.update({DESCRIPTION: described.model_dump_json(), **official})
    return onnx


def _refuse_what_no_file_holds(onnx: Any, opset: int | None) -> None:
    """Raises ConfigError for too many values, and for operators of another version than what was asked for."""
    values = [one.const_value for one in onnx.model.graph.initializers.values()]
    if (held := sum(value.nbytes for value in values if value is not None)) > LARGEST_FILE:
        raise ConfigError(
            f"export: the model holds {held / 1e9:.1f} GB, an ONNX file {LARGEST_FILE / 1e9:.1f}; try it with "
            "inputs='features', without the extractor"
        )
    version = onnx.model.opset_imports[""]
    if opset not in (None, version):
        raise ConfigError(f"opset={opset}: can not be translated to, only to {version}; leave it out, or try another")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without words of what torch is about to change in itself, and of translations that it tries in vain."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
