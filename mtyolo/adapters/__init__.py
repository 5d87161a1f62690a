"""From features to what the replaced layers would have produced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from mtyolo.adapters.conv import ConvAdapter, Identity
from mtyolo.adapters.pyramid import FusionAdapter, PyramidAdapter
from mtyolo.config.model import AdaptersConfig
from mtyolo.config.reading import nearest
from mtyolo.errors import ConfigError
from mtyolo.imported import call_own, import_class, import_path_of
from mtyolo.structures import Level

ADAPTERS: dict[str, Callable[..., nn.Module]] = {
    "identity": Identity,
    "conv": ConvAdapter,
    "pyramid": PyramidAdapter,
    "fusion": FusionAdapter,
}
"""Called with the levels that come and the levels that are wanted; `forward(pyramid, size) -> stride -> features`."""


def make_adapters(
    config: AdaptersConfig,
    inputs: Sequence[Level],
    outputs: Sequence[Level],
    registry: Mapping[str, Callable[..., nn.Module]] = ADAPTERS,
    *,
    trust: bool = False,
) -> nn.Module:
    """The adapters that a model file names, sized from what comes and what is wanted.

    trust: also import `package.module:Class`. Raises ConfigError for a type or an argument that is not known.
    """
    if config.type in registry:
        make = registry[config.type]
    elif ":" in config.type:
        make = import_class(config.type, "adapters.type", trust)
    else:
        meant = import_path_of(config.type)
        hint = f"did you mean {meant}?" if meant else nearest(config.type, registry)
        raise ConfigError(
            f"adapters.type: unknown adapter {config.type!r}; {hint} (your own classes as module:Class with --trust, "
            "or by name, as adapters={name: class} from Python)"
        )
    options: dict[str, Any] = dict(config.arguments)
    if config.type in ADAPTERS and config.type != "identity":
        sizes = {"depth": config.depth, "width": config.width}
        options = {"norm": config.norm} | {key: size for key, size in sizes.items() if size is not None} | options
    return call_own(f"adapters: {config.type}", make, inputs, outputs, **options)  # type: ignore[no-any-return]


__all__ = ["ADAPTERS", "ConvAdapter", "FusionAdapter", "Identity", "PyramidAdapter", "make_adapters"]
