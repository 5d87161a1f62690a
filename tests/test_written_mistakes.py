"""Mistakes in files are said by the keys that a person wrote, whatever the schemas are called inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mtyolo import TrainConfig
from mtyolo.config.model import AdaptersConfig
from mtyolo.config.plan import read_plan
from mtyolo.config.training import AugmentConfig, read_config
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
            teacher(weights=""),
            "stages.0.distill.teachers.0.weights: a path is expected, got an empty text; name a file or folder, or "
            "leave the key out",
        ),
        (
            teacher(weights="a\0.pt"),
            "stages.0.distill.teachers.0.weights: a path has no character of code 0, and this has one; write it anew",
        ),
        ({"epochs": True}, "stages.0.epochs: a number is expected, got True"),
        ({"tasks": []}, "stages.0.tasks: List should have at least 1 item after validation, not 0, got []"),
        (
            {"distill": teacher()["distill"] | {"soft": 0, "hard": 0}},
            "stages.0.distill: soft and hard are both 0, so nothing would be learned; give one of them a weight",
        ),
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


@pytest.mark.parametrize(
    ("schema", "values", "said"),
    [
        (TrainConfig, {"lr": "x"}, "TrainConfig: lr: Input should be a valid number, got 'x'"),
        (TrainConfig, {"epoch": 3}, "TrainConfig: unknown key 'epoch'; did you mean 'epochs'?"),
        (
            TrainConfig,
            {"augment": {"flip": 2}},
            "TrainConfig: augment.flip: Input should be less than or equal to 1, got 2",
        ),
        (AugmentConfig, {"flip": 2}, "AugmentConfig: flip: Input should be less than or equal to 1, got 2"),
        (AdaptersConfig, {"width": 2}, "AdaptersConfig: width is of type: fusion; conv has none, so take width out"),
    ],
)
def test_a_mistake_in_python_is_said_as_one_in_a_file(schema: type[Any], values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        schema(**values)
    assert str(caught.value) == said


def test_a_mistake_inside_a_file_keeps_its_line(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("epochs: 3\naugment:\n  flip: 2\n")
    with pytest.raises(
        ConfigError, match=r"run\.yaml:3: augment\.flip: Input should be less than or equal to 1, got 2"
    ):
        read_config(tmp_path / "run.yaml")


def bomb(levels: int) -> str:
    """A list of nine references to a list of nine references, and so on: some lines that say billions of things."""
    lists = [f"x{number}: &x{number} [{', '.join(9 * [f'*x{number - 1}'])}]" for number in range(1, levels)]
    return "\n".join(["x0: &x0 [1, 1]", *lists])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stages: &a [*a]", r"p.yaml:1: stages.0: Input should be a valid dictionary, got \["),
        (f"stages: {2000 * '['}{2000 * ']'}", "p.yaml: too deeply nested to be read"),
        (f"{bomb(12)}\nstages: [{{name: a}}]", "p.yaml:1: unknown key 'x0'"),
        (f"{bomb(12)}\nstages: *x11", "p.yaml:1: unknown key 'x0'"),
        ("stages:\n- &a {name: a, epochs: x}\n- *a", "p.yaml:2: stages.0.epochs: Input should be a valid integer"),
    ],
    ids=("itself", "deep", "many", "many stages", "twice"),
)
def test_references_in_a_file_are_followed_once(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_plan(tmp_path / "p.yaml")


def test_what_was_written_is_cut_where_it_goes_on_and_on() -> None:
    value: list[Any] = [1]
    for _ in range(12):
        value = 9 * [value]
    with pytest.raises(ConfigError) as refusal:
        read_plan({"stages": [{"name": "a", "epochs": value}]})
    assert "stages.0.epochs: Input should be a valid integer, got [[[...], [...]" in str(refusal.value)
    assert len(str(refusal.value)) < 1000
