"""What trackers are told of how a run is configured."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mtyolo.training.settings import Settings

Plain = str | int | float | bool
"""What every tracker takes."""

LONGEST = 250
"""Characters of a text; some trackers leave out longer ones."""


def told(settings: Settings) -> dict[str, Plain]:
    """Configuration, data, stages and model of a run under names as `augment/mosaic`.

    Lists are joined; what is not set, and lists of lists, as a graph's layers, are left out.
    """
    config, plan = settings.parsed()
    model = json.loads(settings.model)
    model["names"] = list((model.get("names") or {}).values())
    model["tasks"] = {task: options or True for task, options in (model.get("tasks") or {}).items()}
    whole = config.model_dump(mode="json") | {
        "data": settings.data_path,
        "features": settings.features,
        "stages": [stage.name for stage in plan.stages],
        "balance": plan.balance,
        "model": model,
    }
    return dict(_plain(whole))


def _plain(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Plain]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _plain(value, f"{prefix}{name}/")
        elif isinstance(value, list) and value and not any(isinstance(item, list | Mapping) for item in value):
            yield prefix + name, _short(", ".join(map(str, value)))
        elif isinstance(value, Plain):
            yield prefix + name, _short(value) if isinstance(value, str) else value


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


__all__ = ["told"]
