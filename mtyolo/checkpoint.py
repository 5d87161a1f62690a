"""Weights for use: one safetensors file with the configuration inside; and opening whatever file a person names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mtyolo.assembly import Registry, StandIn, assemble, build
from mtyolo.config.arguments import check_paths
from mtyolo.config.model import AdaptersConfig, ModelConfig
from mtyolo.errors import CheckpointError, ConfigError
from mtyolo.extractors.base import GivenFeatures
from mtyolo.extractors.pretrained import identity_of
from mtyolo.files import EXPORTED, existing, replacing
from mtyolo.graph.official import read_official
from mtyolo.model import Model

FORMAT = "mtyolo/1"
SUFFIX = ".safetensors"
HEATMAPS = "branches.keypoint.heatmaps."
FIRST_ADAPTER = "adapters.layers.0."
EXTRACTOR = "extractor."
"""Where the extractor's tensors are in a state dict."""


def save_weights(model: Model, path: Path | str, *, tensors: dict[str, Tensor] | None = None) -> Path:
    """Write a model's weights and configuration to one `.safetensors` file, by way of a temporary name.

    tensors: a state dict in place of the model's own (an average of weights, say). An extractor that a feature store
    stands in for is not inside; its identity is, and its weights are loaded again from where the model file found them.
    Raises CheckpointError for another suffix, by which `load` would take the file for an official one.
    """
    if not isinstance(model, Model):
        raise ConfigError(f"model: expected a model of mtyolo, got {type(model).__name__}")
    check_paths("path", path=path)
    path = Path(path)
    if path.suffix != SUFFIX:
        raise CheckpointError(f"{path}: weights are written as safetensors; name it {path.stem}{SUFFIX}")
    metadata = {"format": FORMAT, "config": model.config.model_dump_json(exclude_none=True)}
    if model.extractor is not None and not model.extractor.state_dict():
        metadata["extractor"] = json.dumps(identity_of(model.extractor))
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in (tensors or model.state_dict()).items()}
    with replacing(path) as temporary:
        save_file(state, temporary, metadata)
    return path


def load(
    path: Path | str,
    *,
    extractors: Registry | None = None,
    adapters: Registry | None = None,
    stand_in: StandIn | None = None,
    trust: bool = False,
) -> Model:
    """A model from an official `.pt` or from weights that mtyolo wrote, in evaluation mode. Raises CheckpointError.

    stand_in: what takes the extractor's place where features are stored, as for `assembly.build`.
    """
    check_paths("path", path=path)
    if Path(path).suffix in (".yaml", ".yml"):
        raise CheckpointError(
            f"{path}: a model file, which has no weights inside; mtyolo.build opens it, with weights=…"
        )
    path = existing(path)
    refuse_exported(path)
    if path.suffix != SUFFIX:
        return _load_official(path)
    saved = read_weights(path)
    config, state = saved.config, saved.state
    # Trained from stored features: the extractor was frozen, and is where the model file found it.
    elsewhere = not any(name.startswith(EXTRACTOR) for name in state)
    model = assemble(
        config, extractors=extractors, adapters=adapters, stand_in=stand_in, trust=trust, weights=elsewhere
    )
    if isinstance(model.extractor, GivenFeatures):
        model.extractor.made_by(saved.identity)
    if stand_in:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(EXTRACTOR)}
    elif elsewhere:
        state |= {name: tensor for name, tensor in model.state_dict().items() if name.startswith(EXTRACTOR)}
        if model.extractor is not None:
            check_extractor(path, saved.identity, identity_of(model.extractor))
    _fill(path, model, state)
    return model.to(memory_format=torch.channels_last).eval()


def refuse_exported(path: Path | str) -> None:
    """Raises CheckpointError where weights are wanted."""
    if Path(path).suffix == EXPORTED:
        raise CheckpointError(
            f"{path}: an exported network finds (predict) and is judged (val), no more; for all else name the weights "
            "that it was exported from"
        )


def _load_official(path: Path) -> Model:
    official = read_official(path)
    config = ModelConfig.model_validate(
        {"detector": {"graph": official.graph.content, "weights": str(path.absolute())}}
    )
    return build(config)


class Saved(NamedTuple):
    """Configuration, tensors, and what is known of an extractor that is not inside."""

    config: ModelConfig
    state: dict[str, Tensor]
    identity: dict[str, str]


def check_extractor(path: Path, trained_with: dict[str, str], found: dict[str, str]) -> None:
    """Raises CheckpointError where features would not be those that a file was trained on."""
    differs = [key for key in trained_with if trained_with[key] != found.get(key, trained_with[key])]
    if differs:
        key = differs[0]
        raise CheckpointError(
            f"{path}: was trained on features of an extractor with {key} {trained_with[key]}, and the one that its "
            f"model file names has {found[key]}; put the weights back that the features were made with"
        )


def read_weights(path: Path) -> Saved:
    """What a file that `save_weights` wrote holds. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged, or not a safetensors file: {error}") from None
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: has no model inside (format {metadata.get('format')!r}, expected {FORMAT!r}); "
            "weights of an extractor belong into a model file, under extractor.weights, those of a teacher beside its "
            "graph"
        )
    try:
        config = ModelConfig.model_validate(json.loads(metadata["config"]))
        identity = json.loads(metadata.get("extractor", "{}"))
    except (KeyError, ValueError) as error:  # pydantic's are ValueErrors, json's too
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: does not say what model it holds: {reason}; was it written by a newer mtyolo?"
        ) from None
    return Saved(config_as_written(config, state), state, identity)


def config_as_written(config: ModelConfig, state: dict[str, Tensor]) -> ModelConfig:
    """What files of earlier versions do not say, or say wrongly, their tensors tell.

    Keypoint branches had no heat-maps at first. Adapters of a depth that nobody wrote were noted with depth 1.
    """
    config, tasks = config.model_copy(update={"adapters": _adapters_as_written(config.adapters, state)}), config.tasks
    if tasks is None or tasks.keypoint is None or any(name.startswith(HEATMAPS) for name in state):
        return config
    keypoint = tasks.keypoint.model_copy(update={"heatmaps": False})
    return config.model_copy(update={"tasks": tasks.model_copy(update={"keypoint": keypoint})})


def _adapters_as_written(adapters: AdaptersConfig, state: dict[str, Tensor]) -> AdaptersConfig:
    if adapters.type not in ("pyramid", "fusion"):
        return adapters
    layer = [tensor for name, tensor in state.items() if name.startswith(FIRST_ADAPTER)]
    wide = sum(tensor.ndim == 4 and tensor.shape[-1] == 3 for tensor in layer)  # all but the first of its convolutions
    return adapters.model_copy(update={"depth": 1 + wide}) if layer else adapters


def _fill(path: Path, model: Model, state: dict[str, Tensor]) -> None:
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        first = missing[0] if missing else extra[0]
        raise CheckpointError(
            f"{path}: {len(missing)} tensors are missing and {len(extra)} unknown, first {first}; "
            "it was written by another version of mtyolo or of a library it uses"
        )
    wrong = next((name for name in own if own[name].shape != state[name].shape), None)
    if wrong:
        raise CheckpointError(
            f"{path}: {wrong} is {list(state[wrong].shape)}, the model needs {list(own[wrong].shape)}"
        )
    model.load_state_dict(state)
