"""Models of the ultralytics families, as teachers: built by the installed package from files that are only data."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mtyolo.errors import CheckpointError, ConfigError
from mtyolo.graph.blocks import process_left_as_it_was
from mtyolo.graph.official import read_pickled

BOX_VALUES = 4
"""x, y, width, height; then classes: these heads have no objectness."""

CHANNELS = 3

NETWORKS = {
    "Detect": "DetectionModel",
    "v10Detect": "DetectionModel",
    "Segment": "SegmentationModel",
    "Segment26": "SegmentationModel",
    "Pose": "PoseModel",
    "Pose26": "PoseModel",
}
"""Class of the head -> class of the whole model."""

HARMLESS_ACTIVATION = re.compile(r"(torch\.)?nn\.[A-Z]\w*\([\w=., ]*\)")
"""ultralytics evaluates this text; anything but a plain constructor is refused."""


class FamilyOutputs(NamedTuple):
    rows: Tensor
    """[B, sum(H*W), 4 + classes + extra]: xywh in input pixels, class probabilities; extra: mask coefficients, or K
    points as x, y in input pixels and visibility probability."""
    prototypes: Tensor | None  # [B, P, H/4, W/4]


class FamilyModel(nn.Module):
    """An anchor-free detect, segment or pose model, always in evaluation mode.

    images [B, 3, H, W] RGB in 0..1 -> FamilyOutputs, one row a cell, level by level, fine to coarse.
    """

    def __init__(self, network: nn.Module, names: Mapping[int, str]) -> None:
        super().__init__()
        self.network = network
        self.names = dict(names)
        head: Any = network.get_submodule("model")[-1]  # type: ignore[index]
        self.strides = tuple(int(stride) for stride in head.stride)
        self.neck: tuple[int, ...] = tuple(head.f)
        self.points: int | None = head.kpt_shape[0] if hasattr(head, "kpt_shape") else None
        self.has_masks = hasattr(head, "proto")
        head.forward = partial(_in_single_precision, head.forward)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FamilyModel:
        return super().train(False)

    @property
    def largest_stride(self) -> int:
        """Input sizes must be a multiple of this."""
        return max(self.strides)

    def layer(self, number: int) -> nn.Module:
        return self.network.get_submodule(f"model.{number}")

    def forward(self, images: Tensor) -> FamilyOutputs:
        found = self.network(images)[0]
        rows, prototypes = found if isinstance(found, tuple) else (found, None)
        return FamilyOutputs(rows.float().transpose(1, 2), prototypes)


def _in_single_precision(forward: Callable[[Sequence[Tensor]], Any], features: Sequence[Tensor]) -> Any:
    """These heads decode to pixels. Above 512, half precision knows every half one, bfloat16 every fourth."""
    with torch.autocast(features[0].device.type, enabled=False):
        return forward([level.float() for level in features])


def is_family(path: Path | str) -> bool:
    """Does a `.pt` file hold a model of these families? Raises CheckpointError: missing or damaged."""
    return read_pickled(path).head.startswith("ultralytics.")


def open_family(path: Path | str, graph: str | None = None) -> FamilyModel:
    """From an ultralytics `.pt`, or from plain tensors and the name of their YAML.

    Raises CheckpointError or ConfigError: another kind of head, tensors that do not fit, a layer list that names more
    than layers.
    """
    if graph is not None:
        return _from_tensors(Path(path), graph)
    pickled = read_pickled(path)
    kind = pickled.head.rpartition(".")[2]
    network = _build(str(path), copy.deepcopy(pickled.graph), kind, len(pickled.names))
    _fill(str(path), network, pickled.tensors)
    return FamilyModel(network, pickled.names)


def _from_tensors(path: Path, graph: str) -> FamilyModel:
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: can not be read as plain tensors for {graph}: {error}; they are taken from .safetensors alone, "
            "as safetensors.torch.save_file(model.state_dict(), …) writes them, and a whole .pt without graph"
        ) from None
    with process_left_as_it_was():
        from ultralytics.nn.tasks import yaml_model_load

        try:
            content = yaml_model_load(graph)
        except FileNotFoundError:
            raise ConfigError(
                f"teacher: graph: the installed ultralytics has no {graph}; name one of its files"
            ) from None
    head = str(content["head"][-1][2])
    network = _build(graph, content, head, int(content["nc"]))
    if not any(".bn." in name for name in tensors):
        with process_left_as_it_was():
            network = network.eval().fuse(verbose=False)  # type: ignore[operator]
    _fill(str(path), network, tensors)
    return FamilyModel(network, {number: str(number) for number in range(int(content["nc"]))})


def _build(place: str, content: dict[str, Any], kind: str, classes: int) -> nn.Module:
    if kind not in NETWORKS:
        raise CheckpointError(
            f"{place}: its head, {kind}, can not teach: a teacher tells for each cell an upright box and the scores of "
            f"its classes; take a detect, segment or pose model, with a head of {', '.join(NETWORKS)}"
        )
    _refuse_other_channels(place, content)
    with process_left_as_it_was():
        from ultralytics.nn import tasks

        _refuse_more_than_layers(place, content, vars(tasks))
        network = getattr(tasks, NETWORKS[kind])(content, nc=classes, verbose=False)
    # Newer families choose by one-to-one matching; what teaches is the dense head.
    last: Any = network.get_submodule("model")[-1]  # type: ignore[index]
    if getattr(last, "end2end", False):
        last.end2end = False
    return network


def _refuse_other_channels(place: str, content: dict[str, Any]) -> None:
    channels = content.get("channels", content.get("ch", CHANNELS))
    if channels != CHANNELS:
        raise CheckpointError(
            f"{place}: takes pictures of {channels} channels, and students look at {CHANNELS}, red, green and blue; "
            "take a teacher of colour pictures"
        )


def _refuse_more_than_layers(place: str, content: dict[str, Any], known: Mapping[str, Any]) -> None:
    """The package looks a layer's name up among all that its module imports; a file must not call what is no layer."""
    for _, _, name, _ in [*content["backbone"], *content["head"]]:
        found = getattr(nn, name[3:], None) if name.startswith("nn.") else known.get(name)
        is_layer = isinstance(found, type) and issubclass(found, nn.Module) and not hasattr(found, "loss")
        if not is_layer:
            raise CheckpointError(
                f"{place}: its layer list names {name!r}, which is no layer of the installed ultralytics"
            )
    activation = content.get("activation")
    if activation is not None and not HARMLESS_ACTIVATION.fullmatch(str(activation)):
        raise CheckpointError(f"{place}: activation: {activation!r} is not the plain constructor of a layer")


def _fill(place: str, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = network.state_dict()
    wrong = sorted(own.keys() ^ tensors.keys()) or [n for n in own if own[n].shape != tensors[n].shape]
    if wrong:
        raise CheckpointError(
            f"{place}: {len(wrong)} tensors do not fit what the installed ultralytics {_version()} builds, "
            f"first {wrong[0]}; install the version that wrote the file, or name its graph"
        )
    with torch.no_grad():
        network.load_state_dict(dict(tensors))


def _version() -> str:
    from importlib.metadata import version

    return version("ultralytics")
