"""Extractors whose weights nobody has learned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mtyolo.cli.output import say
from mtyolo.config.plan import StageConfig, read_plan

if TYPE_CHECKING:
    from mtyolo.config.model import ExtractorConfig
    from mtyolo.extractors.base import Extractor
    from mtyolo.model import Model

PART = "extractor"


def is_drawn(extractor: Extractor, config: ExtractorConfig) -> bool:
    """Has it other weights each time it is made?"""
    import torch

    from mtyolo.extractors import make_extractor
    from mtyolo.extractors.pretrained import identity_of

    with torch.random.fork_rng(devices=[]):
        again = make_extractor(config, (), trust=True)
    return identity_of(again) != identity_of(extractor)


def say_of_chance(model: Model, path: Path | None, plan: str | None) -> None:
    """Of a plan that trains everything but what comes first. path: of weights, or of the model file."""
    from mtyolo.extractors.base import Extractor
    from mtyolo.training.settings import default_plan

    config, extractor = model.config.extractor, model.extractor
    if config is None or not isinstance(extractor, Extractor) or (path is not None and path.suffix == ".safetensors"):
        return
    name = plan or default_plan(model)
    if any(map(_trains_it, read_plan(name).stages)) or not is_drawn(extractor, config):
        return
    say(
        f"warning: no stage of the plan {name} trains the extractor, and {config.name} has its weights from chance: "
        "what comes after it would learn from noise; name learned ones, extractor: {weights: …}, or a plan of your own "
        "with train: [extractor, adapters]"
    )


def _trains_it(stage: StageConfig) -> bool:
    named = stage.train == "all" or any(part.split(".")[0] == PART for part in stage.train)
    return named and PART not in stage.freeze
