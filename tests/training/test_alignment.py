"""Alignment of adapters to the layers that they replace, without labels."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mtyolo.api import build
from mtyolo.checkpoint import load
from mtyolo.config.plan import read_plan
from mtyolo.config.training import LossGains, TrainConfig
from mtyolo.data.dataset import Dataset
from mtyolo.data.loader import make_loader
from mtyolo.data.split import load_split
from mtyolo.distill.row_terms import bernoulli_divergence
from mtyolo.errors import ConfigError
from mtyolo.model import Model
from mtyolo.training.objectives.alignment import AlignedTasksObjective, level_errors, make_align, map_errors
from mtyolo.training.objectives.tasks import TasksObjective
from mtyolo.training.train import train

SIZE = 64


@pytest.fixture(scope="module")
def weights(test_data: Path) -> Path:
    return test_data / "weights" / "yolov5n.pt"


BRANCHES = ("branches.segment.", "branches.keypoint.")


def lite(weights: Path | None, *, match_statistics: bool = False, data: Path | None = None, **config: Any) -> Model:
    """An untrained extractor before YOLOv5n."""
    torch.manual_seed(0)
    detector: dict[str, Any] = {"graph": "yolov5n.yaml"}
    return build(
        {
            "extractor": {"name": "timm/mobilenetv2_035", "weights": "none"},
            "adapters": {"type": "conv", "match_statistics": match_statistics},
            "detector": detector if weights is None else detector | {"weights": str(weights)},
            **config,
        },
        data=data,
    )


def align(model: Model, data: Path, out: Path, **stage: Any) -> dict[str, torch.Tensor]:
    whole = {"name": "align", "objective": "align", "train": ["adapters"], "optimizer": "adamw", "lr": 0.002}
    config = TrainConfig(epochs=1, imgsz=SIZE, batch=4, workers=0, device="cpu", warmup_epochs=0)
    plan = {"stages": [whole | {"augment": {"mosaic": 0}} | stage]}
    run = train(model, data, plan=plan, config=config, out=out, progress=False)
    assert {"loss/align.8", "loss/align.16", "loss/align.32"} <= set(run.results[-1]), "errors by level are reported"
    return model.state_dict()


@pytest.fixture
def coloured(shapes: Path) -> Path:
    """The shapes among as many classes as YOLOv5n has, which are only counted, as it calls them otherwise."""
    content = yaml.safe_load(shapes.read_text())
    for split in ("train", "val"):
        labels = json.loads((shapes.parent / f"{split}.json").read_text())
        for category in labels["categories"]:
            category["name"] = str(category["id"])
        (shapes.parent / f"counted_{split}.json").write_text(json.dumps(labels))
        content["annotations"][split] = f"counted_{split}.json"
    content["names"] = {number: str(number) for number in range(80)}
    path = shapes.parent / "eighty.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_error_is_zero_for_equal_and_one_for_the_mean() -> None:
    wanted = {8: torch.randn(2, 4, 8, 8), 16: 3 + 5 * torch.randn(2, 4, 4, 4)}
    assert {stride: float(error) for stride, error in level_errors(wanted, wanted).items()} == {8: 0, 16: 0}
    mean = {stride: torch.full_like(level, float(level.mean())) for stride, level in wanted.items()}
    for error in level_errors(mean, wanted).values():
        assert float(error) == pytest.approx(1, rel=0.02)


def test_map_errors_vanish_for_equal_maps_and_weigh_places_by_objectness() -> None:
    wanted = [torch.randn(1, 3, 4, 4, 7)]
    assert all(float(error) == pytest.approx(0, abs=1e-6) for error in map_errors(wanted, wanted).values())
    background = wanted[0].clone()
    background[..., 4] = -30.0
    found = background.clone()
    found[..., :4] += 5
    found[..., 5:] -= 5
    errors = map_errors([found], [background])
    assert float(errors["align.boxes"]) == pytest.approx(0, abs=1e-6), "background teaches objectness only"
    assert float(errors["align.classes"]) == pytest.approx(0, abs=1e-6)


def test_bernoulli_divergence_is_that_of_probabilities() -> None:
    found = float(bernoulli_divergence(torch.tensor(0.0), torch.tensor(math.log(3))))
    assert found == pytest.approx(0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))


def test_labels_make_no_difference_and_only_adapters_move(weights: Path, coloured: Path, tmp_path: Path) -> None:
    """The photos alone, in a folder without any label, give the same weights to the bit."""
    before = lite(weights).state_dict()
    with_labels = align(lite(weights), coloured, tmp_path / "labelled")
    folder = coloured.parent / "train"
    without = align(lite(weights), folder, tmp_path / "unlabelled")
    assert all(torch.equal(with_labels[name], without[name]) for name in with_labels)
    changed = {name for name in before if not torch.equal(before[name], with_labels[name])}
    assert changed
    assert all(name.startswith("adapters.") for name in changed)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("align", [("adapters.",), ("adapters.",)]),
        ("align-refine", [("adapters.", *BRANCHES), ("",)]),
        ("align-freeze-unfreeze", [("adapters.",), ("adapters.",), ("adapters.", *BRANCHES), ("",)]),
    ],
)
def test_in_each_stage_of_a_shipped_plan_only_what_it_names_moves(
    name: str, expected: list[tuple[str, ...]], weights: Path, coloured: Path, tmp_path: Path
) -> None:
    model, plan = lite(weights, data=coloured, tasks={"detect": {}, "segment": {}, "keypoint": {}}), read_plan(name)
    config = TrainConfig(epochs=1, imgsz=SIZE, batch=4, workers=0, device="cpu", warmup_epochs=0)
    for number, (stage, prefixes) in enumerate(zip(plan.stages, expected, strict=True)):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        single = plan.model_copy(update={"stages": [stage.model_copy(update={"epochs": 1, "views": 1})]})
        train(model, coloured, plan=single, config=config, out=tmp_path / str(number), progress=False)
        changed = {key for key, value in model.state_dict().items() if not torch.equal(before[key], value)}
        assert all(key.startswith(prefixes) for key in changed), f"stage {stage.name}: moved what it should not"
        assert all(any(key.startswith(prefix) for key in changed) for prefix in prefixes), f"stage {stage.name}"


def test_the_second_phase_goes_through_the_frozen_graph(weights: Path, coloured: Path, tmp_path: Path) -> None:
    model = lite(weights)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    align(model, coloured, tmp_path / "run", arguments={"fused": 1.0, "maps": 1.0})
    text = (tmp_path / "run" / "results.csv").read_text()
    assert "align.fused8" in text
    assert "align.objectness" in text
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("adapters."))


def with_labels(model: Model, data: Path, out: Path, **stage: Any) -> dict[str, float]:
    """One stage of labels on everything but the detector; what came of it."""
    config = TrainConfig(epochs=3, imgsz=SIZE, batch=4, workers=0, device="cpu", warmup_epochs=0)
    whole: dict[str, Any] = {
        "name": "labels",
        "freeze": ["detector"],
        "optimizer": "adamw",
        "lr": 0.002,
        "augment": False,
    }
    return train(model, data, plan={"stages": [whole | stage]}, config=config, out=out, progress=False).results[-1]


def test_beside_labels_alignment_keeps_adapters_to_what_they_replace(
    weights: Path, coloured: Path, tmp_path: Path
) -> None:
    def distance(align: float) -> float:
        model = lite(weights)
        stage = {"align": align, "arguments": {"fused": 1.0, "maps": 0.5}, "train": ["adapters"], "lr": 0.01}
        row = with_labels(model, coloured, tmp_path / str(align), **stage)
        assert {"loss/detect", "loss/align", "loss/align.fused8", "loss/align.boxes", "weight/align"} <= set(row)
        return float(row["loss/align.8"])

    assert distance(100.0) < 0.9 * distance(1e-9)


def test_what_goes_through_the_graph_is_what_the_objective_alone_sends(weights: Path, coloured: Path) -> None:
    """Fused features and maps of the tasks' own pass are compared, not those of a second one."""
    model, arguments = lite(weights).eval(), {"fused": 1.0, "maps": 1.0}
    for parameter in model.graph.parameters():
        parameter.requires_grad_(False)
    batch = next(
        iter(make_loader(Dataset(load_split(coloured, "train"), SIZE, None), 4, shuffle=False, workers=0, seed=0))
    )
    alone = make_align(model, arguments, torch.device("cpu"))
    beside = AlignedTasksObjective(TasksObjective(("detect",), LossGains()), alone, weight=0.5)
    own, joint = alone(model, batch), beside(model, batch)
    assert set(joint.tasks) == {"detect", "align"}
    assert joint.tasks["align"].item() == pytest.approx(0.5 * own.tasks["align"].item(), rel=1e-5)


def test_a_model_without_adapters_has_nothing_to_keep(shapes: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    row = with_labels(build("yolov5n.yaml", data=shapes), shapes, tmp_path / "run", align=1.0, freeze=["detector.0"])
    assert "loss/align" not in row


def test_teachers_beside_alignment_are_refused(weights: Path, coloured: Path, tmp_path: Path) -> None:
    teacher = {"teachers": [{"weights": str(weights), "output": {"scaled": 1.0}}]}
    with pytest.raises(ConfigError, match="align has a teacher of its own"):
        with_labels(lite(weights), coloured, tmp_path / "run", align=1.0, distill=teacher)


def test_matched_adapters_start_closer(weights: Path, coloured: Path, tmp_path: Path) -> None:
    def first_error(match_statistics: bool) -> float:
        model, out = lite(weights, match_statistics=match_statistics), tmp_path / str(match_statistics)
        align(model, coloured, out, lr=1e-9)
        with (out / "results.csv").open() as file:
            return float(next(csv.DictReader(file))["loss/align.8"])

    assert first_error(True) < 0.8 * first_error(False)


def test_adapters_that_have_learned_are_not_matched_again(weights: Path, coloured: Path, tmp_path: Path) -> None:
    model = lite(weights, match_statistics=True, data=coloured)
    align(model, coloured, tmp_path / "run", lr=1e-9)
    last = load(tmp_path / "run" / "last.safetensors")
    file = {
        "extractor": {"name": "timm/mobilenetv2_035", "weights": "none"},
        "adapters": {"type": "conv", "match_statistics": True},
        "detector": {"graph": "yolov5n.yaml", "weights": str(weights)},
    }
    inherited = build(file, data=coloured, weights=tmp_path / "run" / "last.safetensors")
    for number, again in enumerate((last, inherited)):
        assert again.config.adapters.match_statistics is False
        before = {name: tensor.clone() for name, tensor in again.state_dict().items() if name.startswith("adapters.")}
        align(again, coloured, tmp_path / f"again{number}", lr=1e-12)
        for name, tensor in before.items():
            if "running" not in name and "num_batches" not in name:
                torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    resumable = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["settings"]["model"]
    assert json.loads(resumable)["adapters"]["match_statistics"] is False


@pytest.mark.parametrize(
    ("arguments", "train_parts", "message"),
    [
        ({"fussed": 1.0}, ["adapters"], "align has no option 'fussed'; did you mean 'fused'"),
        ({"fused": math.inf}, ["adapters"], "fused is a weight, a finite number from 0 on, got inf"),
        ({"fused": "much"}, ["adapters"], "fused is a weight, a finite number from 0 on, got 'much'"),
        ({"fused": 1.0}, ["adapters", "detector"], "goes through the frozen graph; take detector out of train"),
    ],
)
def test_what_align_can_not_do_is_said(
    arguments: dict[str, Any], train_parts: list[str], message: str, weights: Path, coloured: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        align(lite(weights), coloured, tmp_path / "run", arguments=arguments, train=train_parts)


def test_without_official_weights_there_is_no_teacher(coloured: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"name detector\.weights: an official checkpoint"):
        align(lite(None), coloured, tmp_path / "run")
