"""Official tensors into a model, by layer number, whatever was replaced."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mtyolo.errors import CheckpointError
from mtyolo.graph.network import INPUT
from mtyolo.graph.official import OfficialCheckpoint

if TYPE_CHECKING:
    from mtyolo.model import Model

BOX_ROWS = 5
"""Rows of the detect output before the classes: x, y, w, h, objectness."""


def official_name(key: str, head: int) -> str | None:
    """The official name of a tensor of ours (`graph.layers.4.…` -> `model.4.…`); None: officials have no such thing."""
    if key.startswith("graph.layers."):
        return "model." + key.removeprefix("graph.layers.")
    if key == "branches.detect.anchors":
        return f"model.{head}.anchors"
    if key.startswith("branches.detect.layers."):
        return f"model.{head}.m." + key.removeprefix("branches.detect.layers.")
    if key.startswith("branches.segment.prototypes."):
        return f"model.{head}.proto." + key.removeprefix("branches.segment.prototypes.")
    return None


@torch.no_grad()
def transfer(official: OfficialCheckpoint, model: Model) -> None:
    """Copy an official checkpoint into a model: graph, detect branch, and the segment branch of a -seg file.

    Classes are matched by name where the class lists differ; those that the checkpoint does not know keep their fresh
    weights and become the model's `fresh_classes`. Its anchors come along: they are never re-fitted under a
    pretrained head.
    Raises CheckpointError naming the first tensor that does not fit.
    """
    head = official.graph.head.number
    if head != model.graph.spec.head.number:
        raise CheckpointError(
            f"{official.path}: has {head} layers, the model's graph {model.graph.spec.head.number}; "
            "name the graph that the checkpoint was trained with"
        )
    source = dict(official.tensors)
    source |= _split_head(official, model)
    source[f"model.{head}.anchors"] = official.anchors
    for key, tensor in _own_tensors(model):
        name = official_name(key, head)
        if name is None or name not in source:
            _expect_absence(official, model, key, name)
            continue
        if source[name].shape != tensor.shape:
            if _takes_features(model, key):
                continue
            raise CheckpointError(_mismatch(official, name, source[name].shape, tensor.shape))
        tensor.copy_(source[name])
    model.config = model.config.with_unknown(unknown_classes(official.names, model.names))


def _mismatch(official: OfficialCheckpoint, name: str, got: torch.Size, needed: torch.Size) -> str:
    return (
        f"{official.path}: {name} is {list(got)}, the model needs {list(needed)}; "
        "the graph's width, depth or anchors differ from the checkpoint's"
    )


def _own_tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    for prefix, module in (("graph", model.graph), *((f"branches.{t}", model.branches[t]) for t in model.tasks)):
        for key, tensor in module.state_dict(keep_vars=True).items():
            yield f"{prefix}.{key}", tensor


def _expect_absence(official: OfficialCheckpoint, model: Model, key: str, name: str | None) -> None:
    """Only branches that the checkpoint does not have may stay without its tensors."""
    if name is None or key.startswith("branches.segment."):
        return
    raise CheckpointError(f"{official.path}: has no {name}; the model's graph is not the one that it was trained with")


def _takes_features(model: Model, key: str) -> bool:
    """Is this the first layer of a graph whose input is features? Its channels can not be the official three."""
    first = [str(layer.number) for layer in model.graph.steps if INPUT in layer.sources]
    return INPUT in model.graph.entry and any(key.startswith(f"graph.layers.{number}.") for number in first)


def _split_head(official: OfficialCheckpoint, model: Model) -> dict[str, Tensor]:
    """The last layer's rows, per anchor: box and objectness, classes, mask coefficients."""
    head = official.graph.head.number
    anchors = official.anchors.shape[1]
    known = BOX_ROWS + len(official.names)
    split: dict[str, Tensor] = {}
    for level, _ in enumerate(official.anchors):
        for kind in ("weight", "bias"):
            name = f"model.{head}.m.{level}.{kind}"
            rows = official.tensors[name].unflatten(0, (anchors, -1))
            masks = rows[:, known:]
            if masks.shape[1] and "segment" in model.tasks:
                _fill_coefficients(model, level, kind, masks, official)
            own = model.get_parameter(f"branches.detect.layers.{level}.{kind}").detach()
            if own.shape[1:] != rows.shape[2:]:
                raise CheckpointError(_mismatch(official, name, official.tensors[name].shape, own.shape))
            learned = rows[:, :known].flatten(0, 1)
            split[name] = class_rows(own, learned, anchors, theirs=official.names, ours=model.names)
    return split


def class_rows(
    fresh: Tensor, learned: Tensor, anchors: int, *, theirs: Mapping[int, str], ours: Mapping[int, str]
) -> Tensor:
    """Rows [A * (5 + our classes), …] of a detect layer: box, objectness and all classes that have the same name from
    `learned` [A * (5 + their classes), …], the other classes from `fresh`."""
    found, rows = fresh.clone().unflatten(0, (anchors, -1)), learned.unflatten(0, (anchors, -1))
    picks = _same_classes(theirs, ours)
    found[:, :BOX_ROWS] = rows[:, :BOX_ROWS]
    found[:, [BOX_ROWS + own for own in picks]] = rows[:, [BOX_ROWS + other for other in picks.values()]]
    return found.flatten(0, 1)


def unknown_classes(
    theirs: Mapping[int, str], ours: Mapping[int, str], untaught: Collection[str] = ()
) -> tuple[str, ...]:
    """Those of ours that `class_rows` leaves fresh, or takes from rows that are fresh there: their names."""
    picks = _same_classes(theirs, ours)
    return tuple(name for number, name in ours.items() if number not in picks or theirs[picks[number]] in untaught)


def _same_classes(theirs: Mapping[int, str], ours: Mapping[int, str]) -> dict[int, int]:
    """Our class -> the checkpoint's class. Equal counts are taken in order where one side has
    mere numbers for names."""
    known = {name: number for number, name in theirs.items()}
    picks = {number: known[name] for number, name in ours.items() if name in known}
    unnamed = all(name == str(number) for number, name in (*theirs.items(),)) or all(
        name == str(number) for number, name in ours.items()
    )
    return {number: number for number in ours} if unnamed and len(ours) == len(theirs) else picks


def _fill_coefficients(model: Model, level: int, kind: str, rows: Tensor, official: OfficialCheckpoint) -> None:
    target = model.get_parameter(f"branches.segment.layers.{level}.{kind}")
    if rows.flatten(0, 1).shape != target.shape:
        raise CheckpointError(
            f"{official.path}: has {rows.shape[1]} mask prototypes, the model {target.shape[0] // rows.shape[0]}; "
            f"set tasks.segment.prototypes: {rows.shape[1]}"
        )
    target.copy_(rows.flatten(0, 1))
