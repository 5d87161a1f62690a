"""Mistakes in files are said by the keys that a person wrote, whatever the schemas are called inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mtyolo.config.plan import read_plan
from mtyolo.errors import ConfigError


def teacher(**values: Any) -> dict[str, Any]:
    return {"distill": {"teachers": [{"weights": "a.pt", "output": {"kl": 1}} | values]}}


FEATURES = "stages.0.distill.teachers.0.features"


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (
            teacher(features=[{"method": "cdw"}]),
            f"{FEATURES}.0.method: Input should be 'fitnets', 'relative', 'spatial', 'channel', 'cwd', 'mgd' or "
            "'gradient', got 'cdw'; did you mean 'cwd'?",
        ),
        (teacher(features=[{}]), f"the key '{FEATURES}.0.method' is missing"),
        (
            teacher(features=[{"method": "gradient", "layers": [17]}]),
            f"{FEATURES}.0: gradient is computed at what the branches take: layers: neck",
        ),
        (
            teacher(features=[{"method": "cwd", "layers": {17: "x"}}]),
            f"{FEATURES}.0.layers.17: Input should be a valid integer, got 'x'",
        ),
        (teacher(features="cwd"), f"{FEATURES}: Input should be a valid list or 'per-level', got 'cwd'"),
        ({"augment": {"mosiac": 0}}, "unknown key 'stages.0.augment.mosiac'; did you mean 'mosaic'?"),
        ({"augment": {"mosaic": 3}}, "stages.0.augment.mosaic: Input should be less than or equal to 1, got 3"),
        ({"augment": "no!"}, "stages.0.augment: Input should be a valid boolean or a valid dictionary, got 'no!'"),
        ({"train": [3]}, "stages.0.train.0: Input should be a valid string, got 3"),
        ({"lr_scale": {"bool": "x", "a-b": 1}}, "stages.0.lr_scale.bool: Input should be a valid number, got 'x'"),
        (
            {"lr": -1, "augment": {"flip": 2}},
            "stages.0.lr: Input should be greater than 0, got -1 (1 more)",
        ),
    ],
    ids=str,
)
def test_a_mistake_is_said_by_the_keys_that_were_written(stage: dict[str, Any], said: str, tmp_path: Path) -> None:
    content = {"stages": [{"name": "one"} | stage]}
    with pytest.raises(ConfigError) as refusal:
        read_plan(content)
    assert str(refusal.value) == f"plan: {said}"
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as refusal:
        read_plan(tmp_path / "p.yaml")
    assert str(refusal.value).split(": ", 1)[1] == said
