"""The layers of the official network that a model's features replace: what its adapters can be aligned to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from mtyolo.errors import ConfigError, MtyoloError
from mtyolo.graph.network import INPUT, Graph
from mtyolo.graph.official import OfficialCheckpoint, read_official
from mtyolo.model import Model
from mtyolo.structures import Pyramid


class AlignmentTeacher(nn.Module):
    """The replaced layers of the original pretrained network: what adapters are aligned to.

    images [B, 3, H, W] in 0..1 -> stride -> output of the layer that the entry replaces. Always in evaluation mode.
    """

    def __init__(self, official: OfficialCheckpoint, entry: Mapping[int, int]) -> None:
        super().__init__()
        self.graph = Graph(official.graph, wanted=tuple(entry))
        prefix = "model."
        self.graph.layers.load_state_dict(
            {
                name.removeprefix(prefix): tensor
                for name, tensor in official.tensors.items()
                if name.removeprefix(prefix).split(".")[0] in self.graph.layers
            }
        )
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> AlignmentTeacher:
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> Pyramid:
        return self.graph(images.contiguous(memory_format=torch.channels_last), {})


def alignment_teacher(model: Model) -> AlignmentTeacher:
    """The layers that `model`'s features replace, from the official weights that its file names."""
    teacher = AlignmentTeacher(read_official(replaced_weights(model)), model.graph.entry)
    return teacher.to(memory_format=torch.channels_last)


def replaced_weights(model: Model) -> str:
    """The official checkpoint of the layers that `model`'s features replace. Raises ConfigError for none."""
    weights = model.config.detector.weights
    if not model.graph.entry or INPUT in model.graph.entry:
        raise ConfigError("align: no layer of this model is replaced by features, so there is nothing to align to")
    if weights is None:
        raise ConfigError(
            "align: the replaced layers are the teacher; name detector.weights: an official checkpoint (or --weights; "
            "from Python, weights= of build)"
        )
    return weights


def follows_official(model: Model) -> bool:
    """Is the graph that follows the features still the official one, to the bit? Then what they replaced is a teacher.

    The detect branch does not count: it may have learned other classes from the same features.
    """
    try:
        official = read_official(replaced_weights(model))
    except MtyoloError:
        return False
    pairs = [(tensor, official.tensors.get(f"model.{key}")) for key, tensor in model.graph.layers.state_dict().items()]
    return all(
        theirs is not None and theirs.shape == own.shape and torch.equal(own.cpu(), theirs.to(own.dtype))
        for own, theirs in pairs
    )
