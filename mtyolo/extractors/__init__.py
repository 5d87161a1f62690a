"""From images to features: any timm model, features given from outside, your own class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mtyolo.config.model import ExtractorConfig
from mtyolo.config.reading import nearest
from mtyolo.errors import ConfigError
from mtyolo.extractors.base import Extractor, GivenFeatures
from mtyolo.extractors.timm import PREFIX, TimmExtractor
from mtyolo.imported import import_class

Wanted = tuple[int, ...]


def _given(config: ExtractorConfig, wanted: Wanted) -> Extractor:
    return GivenFeatures(dict(config.levels or {}))


def _timm(config: ExtractorConfig, wanted: Wanted) -> Extractor:
    return TimmExtractor(
        config.name.removeprefix(PREFIX),
        weights=config.weights,
        strides=config.strides or wanted,
        strict=config.strides is not None,
        normalisation=config.normalisation,
        arguments=config.arguments,
    )


EXTRACTORS: dict[str, Callable[..., Any]] = {"features": _given, "timm": _timm}
"""What the model file's extractor.name may say before a slash. Your own classes are called with `arguments`."""


def make_extractor(
    config: ExtractorConfig,
    wanted: Wanted,
    registry: Mapping[str, Callable[..., Any]] = EXTRACTORS,
    *,
    trust: bool = False,
) -> Extractor:
    """The extractor that a model file names. wanted: strides that the entry asks for.

    trust: also import `package.module:Class`. Raises ConfigError for a name that is not known.
    """
    kind = config.name.split("/")[0]
    if kind in EXTRACTORS:
        return EXTRACTORS[kind](config, wanted)
    if kind in registry:
        return _checked(config.name, registry[kind](**config.arguments))
    if ":" in config.name:
        return _checked(config.name, import_class(config.name, "extractor.name", trust)(**config.arguments))
    known = [f"{PREFIX}<model>", "features", *(name for name in registry if name not in EXTRACTORS)]
    hint = f"did you mean {PREFIX}{config.name}?" if "/" not in config.name else nearest(config.name, known)
    raise ConfigError(f"extractor.name: unknown extractor {config.name!r}; {hint} (known: {', '.join(known)})")


def _checked(name: str, extractor: Any) -> Extractor:
    levels = getattr(extractor, "levels", ())
    if not levels:
        raise ConfigError(f"extractor.name: {name} has no levels; set self.levels = (Level(stride, channels), …)")
    return extractor


__all__ = ["EXTRACTORS", "Extractor", "GivenFeatures", "TimmExtractor", "make_extractor"]
