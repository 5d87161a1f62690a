"""What takes an extractor's place in a model that is trained from stored features: its levels and its identity."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from mtyolo.config.model import ExtractorConfig
from mtyolo.errors import StoreError
from mtyolo.extractors import EXTRACTORS
from mtyolo.extractors.base import GIVEN, Extractor, GivenFeatures
from mtyolo.features.index import sha256_of
from mtyolo.features.manifest import Manifest, read_manifest
from mtyolo.model import Model


def source_of(config: ExtractorConfig) -> dict[str, str]:
    """What a model file says about its extractor, as text, so that it can be compared without loading anything."""
    source = {"name": config.name, "arguments": json.dumps(config.arguments, sort_keys=True)}
    if not (_fills_itself(config.name) and config.weights == "imagenet"):
        source["weights"] = config.weights
    if config.normalisation is not None:
        source["normalisation"] = config.normalisation.model_dump_json()
    path = Path(config.weights)
    if path.is_file():
        source |= {"weights": path.name, "sha256": sha256_of(path)}
    return source


def _fills_itself(name: str) -> bool:
    """Is it a class of one's own? Where no file of weights is named, it has none that a word could stand for."""
    return name.split("/")[0] not in EXTRACTORS


def stand_in(directory: Path | str) -> Callable[[ExtractorConfig], Extractor]:
    """For `assembly.build` and `checkpoint.load`: a model for these features, its extractor neither loaded nor needed.

    Raises StoreError where there is no store, and, when called, where another extractor than the model's made it.
    """
    manifest = read_manifest(directory)

    def make(config: ExtractorConfig) -> Extractor:
        difference = _difference(manifest, config)
        if difference and config.name == GIVEN:
            raise StoreError(
                f"{directory}: {difference}; say so under extractor.levels, or write such features with your program"
            )
        if difference:
            raise StoreError(f"{directory}: {difference}; run mtyolo extract with this model into another folder")
        extractor = GivenFeatures(manifest.levels)
        extractor.made_by(manifest.extractor)
        return extractor

    return make


def _difference(manifest: Manifest, config: ExtractorConfig) -> str | None:
    if config.name == GIVEN:
        wanted = dict(config.levels or {})
        return None if wanted == manifest.levels else f"has levels {manifest.levels}, the model file says {wanted}"
    # Another program writes no source; the name must do.
    made, named = manifest.source or {"name": manifest.extractor["name"]}, source_of(config)
    compared = ["name"]
    if manifest.source:
        file = "sha256" in made and "sha256" in named
        compared += ["arguments", "normalisation", "sha256" if file else "weights"]
        made, named = _with_weights(made), _with_weights(named)
    for key in compared:
        if made.get(key) != named.get(key):
            what = {"name": "", "sha256": "'s weights, sha256"}.get(key, f"'s {key}")
            return f"made with the extractor{what} {made.get(key)}, the model file says {named.get(key)}"
    return None


def _with_weights(source: dict[str, str]) -> dict[str, str]:
    """Earlier versions said imagenet of classes that fill themselves."""
    if _fills_itself(source.get("name", "")) and source.get("weights") in (None, "imagenet"):
        return source | {"weights": "none"}
    return source


def refuse_images_alone(directory: Path | str, model: Model) -> None:
    """Raises StoreError for a model that takes images and no features."""
    if model.extractor is None:
        raise StoreError(
            f"{directory}: this model has no extractor, so it takes images and not features; leave --features out, or "
            "train a model with the extractor that made them"
        )
