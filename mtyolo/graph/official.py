"""Official YOLOv5 checkpoints, read without running anything that is pickled in them.

The file pickles whole modules of another project. Only tensors and plain containers are rebuilt here; every other class
or function that the file names is replaced by an inert stand-in that keeps its state and calls nothing.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtyolo.errors import CheckpointError
from mtyolo.files import existing
from mtyolo.graph.reading import GraphSpec, read_graph


@dataclass(frozen=True)
class OfficialCheckpoint:
    """What an official file holds, in float32."""

    path: Path
    tensors: dict[str, Tensor]
    """Official names, `model.<layer>.…`, of parameters and buffers."""
    graph: GraphSpec
    names: dict[int, str]
    anchors: Tensor
    """[L, A, 2] in pixels."""


def read_official(path: Path | str) -> OfficialCheckpoint:
    """Read a `.pt` file of the official project. Raises CheckpointError: missing, damaged, or of another family."""
    path = Path(path)
    model = _find_model(path, _unpickle(path))
    tensors = {
        name: tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
        for name, tensor in _walk(model, "")
    }
    content = _attribute(model, "yaml")
    head = _head_of(model)
    if not isinstance(content, dict) or head is None or "anchors" not in _state(head).get("_buffers", {}):
        raise CheckpointError(
            f"{path}: not a classic YOLOv5 checkpoint: its head has no anchors "
            "(anchor-free files such as yolov5nu.pt are of another family; take yolov5n.pt)"
        )
    classes = int(_attribute(head, "nc"))
    # The file's own list says 80 classes even after fine-tuning on others; the head knows.
    graph = read_graph({key: value for key, value in content.items() if key in _GRAPH_KEYS} | {"nc": classes})
    stride = _attribute(model, "stride")
    anchors = _state(head)["_buffers"]["anchors"].float()
    if not isinstance(stride, Tensor) or anchors.shape[0] != len(stride):
        raise CheckpointError(f"{path}: the strides of its head are missing or do not fit its anchors")
    return OfficialCheckpoint(
        path, tensors, graph, _class_names(model, classes), anchors * stride.float()[:, None, None]
    )


@dataclass(frozen=True)
class PickledModel:
    """What any checkpoint of these families holds: `read_official` knows more about the classic ones."""

    head: str
    """Full name of the class of its last layer: ultralytics.nn.modules.head.Pose."""
    tensors: dict[str, Tensor]
    """By the names of its state dict, floating ones in float32."""
    graph: dict[str, Any]
    names: dict[int, str]


def read_pickled(path: Path | str) -> PickledModel:
    """Read a `.pt` file of any family, without running what is in it. Raises CheckpointError: missing or damaged."""
    path = Path(path)
    model = _find_model(path, _unpickle(path))
    content, head, names = _attribute(model, "yaml"), _head_of(model), _attribute(model, "names")
    if not isinstance(content, dict) or not isinstance(head, _Inert):
        raise CheckpointError(
            f"{path}: its model does not say how it is built; a YOLO checkpoint carries its layer list"
        )
    tensors = {name: tensor.detach() for name, tensor in _walk(model, "")}
    return PickledModel(
        head.qualified_name,
        {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()},
        content,
        _class_names(model, len(names) if isinstance(names, (dict, list)) else 0),
    )


_GRAPH_KEYS = ("depth_multiple", "width_multiple", "anchors", "activation", "backbone", "head")


class _Inert:
    """Stands in for any pickled class or function: takes whatever it is given, keeps state, does nothing."""

    qualified_name: ClassVar[str] = ""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)

    # Containers that subclass list or dict are filled by these.
    def append(self, _: Any) -> None: ...
    def extend(self, _: Any) -> None: ...
    def __setitem__(self, *_: Any) -> None: ...


def _harmless(module: str, name: str) -> Any:
    """The real object for what rebuilds tensors and plain containers; an inert class for everything else."""
    if (module, name) == ("collections", "OrderedDict"):
        return OrderedDict
    if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):
        return getattr(torch._utils, name)
    if module in ("torch", "torch.storage") and name.endswith("Storage"):
        return getattr(torch, name, None) or getattr(torch.storage, name)
    if module == "torch" and name in ("Size", "device", "float16", "float32", "float64", "int64", "bool"):
        return getattr(torch, name)
    if module in ("builtins", "__builtin__") and name in (
        "set",
        "frozenset",
        "list",
        "dict",
        "tuple",
        "slice",
        "complex",
    ):
        return {"set": set, "frozenset": frozenset, "list": list, "dict": dict, "tuple": tuple}.get(name, _Inert)
    return type("Inert", (_Inert,), {"qualified_name": f"{module}.{name}"})


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _harmless(module, name)


def _unpickle(path: Path) -> Any:
    _refuse_what_is_no_checkpoint(existing(path))
    # torch.load takes any object with these names for its pickle module.
    restricted: Any = SimpleNamespace(
        Unpickler=_RestrictedUnpickler,
        load=lambda file, **options: _RestrictedUnpickler(file, **options).load(),
        __name__="restricted",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", pickle_module=restricted, weights_only=False)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        IndexError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: damaged, or not a PyTorch checkpoint: {reason}") from None


def _refuse_what_is_no_checkpoint(path: Path) -> None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # torch.load would hand such a file to the TorchScript loader, past the restricted unpickler.
            if any(name.endswith("constants.pkl") for name in archive.namelist()):
                raise CheckpointError(
                    f"{path}: a TorchScript archive, not a checkpoint; give the .pt it was exported from"
                )


def _find_model(path: Path, content: Any) -> Any:
    if isinstance(content, dict):
        content = content.get("ema") or content.get("model")
    if not isinstance(content, _Inert) or not isinstance(_state(content).get("_modules"), dict):
        raise CheckpointError(f"{path}: holds no model; an official checkpoint has one under 'model' or 'ema'")
    return content


def _state(module: Any) -> dict[str, Any]:
    return module.__dict__ if isinstance(module, _Inert) else {}


def _attribute(module: Any, name: str) -> Any:
    return _state(module).get(name)


def _walk(module: Any, prefix: str) -> list[tuple[str, Tensor]]:
    """Names and tensors as `state_dict()` would give them."""
    state = _state(module)
    found = [
        (prefix + name, tensor)
        for kind in ("_parameters", "_buffers")
        for name, tensor in (state.get(kind) or {}).items()
        if isinstance(tensor, Tensor)
    ]
    for name, child in (state.get("_modules") or {}).items():
        found += _walk(child, f"{prefix}{name}.")
    return found


def _head_of(model: Any) -> Any:
    layers = list((_state(_state(model).get("_modules", {}).get("model")).get("_modules") or {}).values())
    return layers[-1] if layers else None


def _class_names(model: Any, classes: int) -> dict[int, str]:
    names = _attribute(model, "names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or len(names) != classes:
        return {number: str(number) for number in range(classes)}
    return {int(number): str(name) for number, name in names.items()}
