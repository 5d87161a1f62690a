"""What an earlier run has learned, into a model with more branches or other classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mtyolo.checkpoint import EXTRACTOR, HEATMAPS, check_extractor, read_weights
from mtyolo.errors import CheckpointError
from mtyolo.extractors.base import GivenFeatures
from mtyolo.extractors.pretrained import identity_of
from mtyolo.files import existing
from mtyolo.graph.transfer import BOX_ROWS, class_rows, unknown_classes
from mtyolo.model import Model

DETECT = "branches.detect.layers."


@torch.no_grad()
def inherit(path: Path | str, model: Model) -> None:
    """Copy what weights that mtyolo wrote have in common with a model: extractor, adapters, graph, branches.

    A branch that the file does not have, or a keypoint branch's heat-maps, stay fresh. Classes are matched by name;
    those that it does not know stay fresh, too, and become the model's `fresh_classes`. Features that its
    extractor did not give are refused.
    Raises CheckpointError naming the first tensor that does not fit.
    """
    path = existing(path)
    saved = read_weights(path)
    if saved.identity and model.extractor is not None and model.extractor.state_dict():
        check_extractor(path, saved.identity, identity_of(model.extractor))
    if isinstance(model.extractor, GivenFeatures):
        model.extractor.made_by(saved.identity)
    source = _with_classes_of(model, saved.state, saved.config.names or {})
    known = {_part(key) for key in source}
    _check_heatmaps(path, source, model.state_dict())
    for key, tensor in model.state_dict().items():
        part = _part(key)
        if part not in known and (part.startswith("branches.") or key.startswith(EXTRACTOR)):
            continue
        if key not in source:
            raise CheckpointError(f"{path}: has no {key}; {_remedy(part)}")
        if source[key].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: {key} is {list(source[key].shape)}, the model needs {list(tensor.shape)}; {_remedy(part)}"
            )
        tensor.copy_(source[key])
    untaught = saved.config.unknown_classes or ()
    model.config = model.config.with_unknown(unknown_classes(saved.config.names or {}, model.names, untaught))
    if model.config.imgsz is None and saved.config.imgsz is not None:
        model.config = model.config.with_size(saved.config.imgsz)
    if "adapters" in known:
        model.config = model.config.with_known_adapters()
    if model.config.detector.weights is None:  # what adapters are aligned to
        detector = model.config.detector.model_copy(update={"weights": saved.config.detector.weights})
        model.config = model.config.model_copy(update={"detector": detector})


def _check_heatmaps(path: Path, source: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """They add up what they see: of six levels, three are another sum."""
    theirs, ours = ({key for key in state if key.startswith(HEATMAPS)} for state in (source, own))
    if theirs and ours and theirs != ours:
        raise CheckpointError(
            f"{path}: heat-maps of its keypoint branch see other levels; name the detector.entry that it was trained "
            "with, or leave tasks.keypoint out"
        )


def _part(key: str) -> str:
    """branches.detect.layers.0.weight -> branches.detect; adapters.levels.8.… -> adapters."""
    if key.startswith(HEATMAPS):  # a part that a keypoint branch may get later
        return HEATMAPS.removesuffix(".")
    names = key.split(".")
    return ".".join(names[:2]) if names[0] == "branches" else names[0]


def _remedy(part: str) -> str:
    if part in ("extractor", "adapters"):
        return f"name the {part} of the model file that it was trained with"
    if part == "graph":
        return "name the detector.graph and detector.entry that it was trained with"
    return f"name tasks.{part.removeprefix('branches.')} as it was trained, or leave it out"


def _with_classes_of(model: Model, state: dict[str, Tensor], names: dict[int, str]) -> dict[str, Tensor]:
    """The file's tensors, its detect rows in the model's classes."""
    anchors = model.anchors.shape[1]
    rows = {
        key: class_rows(tensor, state[key], anchors, theirs=names, ours=model.names)
        for key, tensor in model.state_dict().items()
        if key.startswith(DETECT) and key in state and _fits(tensor, state[key], anchors, len(names))
    }
    return state | rows


def _fits(own: Tensor, theirs: Tensor, anchors: int, classes: int) -> bool:
    """Is it a matter of classes alone?"""
    return own.shape[1:] == theirs.shape[1:] and len(theirs) == anchors * (BOX_ROWS + classes)
