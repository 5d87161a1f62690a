"""From images to features: any timm model, features given from outside, your own class."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mtyolo.config.model import ExtractorConfig
from mtyolo.config.reading import nearest
from mtyolo.errors import ConfigError
from mtyolo.extractors.base import Extractor, GivenFeatures
from mtyolo.extractors.pretrained import fill, read_tensors
from mtyolo.extractors.timm import PREFIX, TimmExtractor
from mtyolo.imported import call_own, import_class, import_path_of
from mtyolo.structures import Level

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


TIMM_ALONE = ("strides", "normalisation")
"""What a model file says to timm models, and not to your own classes."""

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
        return _own(config, registry[kind])
    if ":" in config.name:
        return _own(config, import_class(config.name, "extractor.name", trust))
    known = [f"{PREFIX}<model>", "features", "module:Class", *(name for name in registry if name not in EXTRACTORS)]
    meant = import_path_of(config.name) or (None if "/" in config.name else f"{PREFIX}{config.name}")
    hint = f"did you mean {meant}?" if meant else nearest(config.name, known)
    raise ConfigError(
        f"extractor.name: unknown extractor {config.name!r}; {hint} (known: {', '.join(known)}; your own classes as "
        "module:Class with --trust, or by name, as extractors={name: class} from Python)"
    )


def refuse_imagenet(config: ExtractorConfig, registry: Mapping[str, Callable[..., Any]]) -> None:
    """Raises ConfigError where a model file asks your own class for weights that only timm models have."""
    kind = config.name.split("/")[0]
    own = kind not in EXTRACTORS and (kind in registry or ":" in config.name)
    if own and config.weights == "imagenet" and "weights" in config.model_fields_set:
        raise ConfigError(
            f"extractor.weights: imagenet: only timm models have these, not {config.name}; name a .safetensors with "
            "its state_dict, or weights: none where the class fills itself (what it must know for that goes under "
            "extractor.arguments)"
        )


def _own(config: ExtractorConfig, make: Callable[..., Any]) -> Extractor:
    """Your class, with the weights that the model file names, if it names some."""
    unused = next((key for key in TIMM_ALONE if getattr(config, key) is not None), None)
    if unused:
        raise ConfigError(
            f"extractor.{unused}: only timm models are told from here; {config.name} does it itself, "
            "and what it must know goes under extractor.arguments"
        )
    extractor = call_own(f"extractor.arguments: {config.name}", make, **config.arguments)
    said: Any = getattr(extractor, "levels", None)
    levels = _levels(config.name, said)
    if not all(isinstance(level, Level) and all(type(number) is int for number in level) for level in said):
        extractor.levels = levels
    if config.weights not in ("imagenet", "none"):
        fill(extractor, read_tensors(Path(config.weights)), config.weights)
    return extractor  # type: ignore[no-any-return]


def _levels(name: str, levels: Any) -> tuple[Level, ...]:
    remedy = "set self.levels = (mtyolo.Level(stride, channels), …)"
    if not levels:
        raise ConfigError(f"extractor.name: {name} has no levels; {remedy}")
    try:
        # As numbers of any make, and in the class's order, in which adapters count what comes.
        found = tuple(Level(*map(operator.index, level)) for level in levels)
    except TypeError:
        found = ()
    if not found or min(min(level) for level in found) < 1:
        raise ConfigError(f"extractor.name: {name}: its levels are {levels!r}; {remedy}")
    return found


__all__ = ["EXTRACTORS", "Extractor", "GivenFeatures", "TimmExtractor", "make_extractor", "refuse_imagenet"]
