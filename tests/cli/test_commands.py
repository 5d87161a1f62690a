"""The commands do their job, one after the other, on a drawn data set."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file

import mtyolo
from mtyolo.assembly import build
from mtyolo.checkpoint import save_weights
from mtyolo.cli.main import USER_ERROR, main
from mtyolo.cli.train import freezing_plan, say_without_effect
from mtyolo.data.creatures import CLASSES
from mtyolo.training.stopping import Interrupted

SMALL = ["--imgsz", "64", "--device", "cpu"]


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs, the first with a frozen detector."""
    out = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["train", "--model", "yolov5n-multitask.yaml", "--data", str(shapes), "--out", str(out), *SMALL]
    options = ["--epochs", "2", "--freeze-det", "--freeze-epochs", "1", "--batch", "4", "--workers", "0"]
    assert main([*arguments, *options]) == 0
    return out


def width_of(path: Path) -> int:
    with Image.open(path) as picture:
        return picture.width


@pytest.mark.slow
def test_train_leaves_results_weights_and_a_picture(run: Path) -> None:
    rows = list(csv.DictReader((run / "results.csv").read_text().splitlines()))
    assert [row["stage"] for row in rows if row["stage"]][-2:] == ["frozen", "joint"]
    assert {"loss/detect", "loss/segment", "loss/keypoint", "detect/AP"} <= set(rows[-1])
    assert (run / "best.safetensors").is_file()
    assert (run / "last.safetensors").is_file()
    assert width_of(run / "train_batch.jpg") > 64


@pytest.mark.slow
def test_a_seed_decides_all_that_a_model_file_leaves_to_chance(shapes: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)  # sums in one order
    options = ["--model", "yolov5n-multitask.yaml", "--data", str(shapes), "--epochs", "1", "--batch", "4", *SMALL]
    for name, seed in (("first", "3"), ("again", "3"), ("other", "4")):
        assert main(["train", *options, "--workers", "0", "--seed", seed, "--out", str(tmp_path / name)]) == 0
    first, again, other = (load_file(tmp_path / name / "last.safetensors") for name in ("first", "again", "other"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.slow
def test_val_prints_json_alone_where_it_is_piped(run: Path, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["val", "--model", str(run / "last.safetensors"), "--data", str(shapes), "--json", "-", *SMALL]
    assert main(arguments) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["detect/images"] == metrics["segment/images"] == metrics["keypoint/images"] == 4
    assert 0 <= metrics["detect/AP"] <= metrics["detect/AP50"] <= 1


@pytest.mark.slow
def test_val_draws_truth_beside_prediction(run: Path, shapes: Path, tmp_path: Path) -> None:
    picture = tmp_path / "compared.jpg"
    arguments = ["val", "--model", str(run / "last.safetensors"), "--data", str(shapes), "--pictures", str(picture)]
    assert main([*arguments, *SMALL]) == 0
    assert width_of(picture) > 64


@pytest.mark.slow
def test_predict_draws_every_picture_and_describes_it(run: Path, shapes: Path, tmp_path: Path) -> None:
    source, described = shapes.parent / "images" / "val", tmp_path / "found.json"
    arguments = ["predict", "--model", str(run / "last.safetensors"), "--source", str(source), *SMALL]
    assert main([*arguments, "--out", str(tmp_path / "drawn"), "--json", str(described)]) == 0
    found = json.loads(described.read_text())
    assert [Path(one["path"]).name for one in found] == sorted(path.name for path in source.iterdir())
    assert all(Path(one["picture"]).is_file() for one in found)


@pytest.mark.slow
def test_batch_may_be_found_automatically(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--model", "yolov5n.yaml", "--data", str(shapes), "--out", str(tmp_path), *SMALL]
    assert main([*arguments, "--epochs", "1", "--workers", "0", "--batch", "auto"]) == 0
    assert "batch: 16" in capsys.readouterr().err  # what a CPU gets


def test_show_counts_what_the_official_network_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "yolov5n.yaml", "--imgsz", "640"]) == 0
    total = next(line for line in capsys.readouterr().out.splitlines() if "│ all" in line)
    _, parameters, _, flops = total.strip("│ ").replace("│", " ").split()
    # As published at github.com/ultralytics/yolov5: 1.9 M parameters (the file says 1,872,157), 4.5 GFLOPs at 640.
    assert parameters == "1,872,157"
    assert float(flops) == pytest.approx(4.5, abs=0.05)


@pytest.mark.parametrize("columns", ["20", "0"])
def test_show_has_words_in_the_narrowest_terminal(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["show", "yolov5n.yaml", "--imgsz", "64"]) == 0
    said = capsys.readouterr().out
    assert "detector.backbone" in said
    assert "1,872,157" in said


def test_show_says_where_features_enter_and_what_is_frozen(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["show", "yolov5n-features.yaml", "--data", str(shapes), "--imgsz", "64"]
    assert main([*arguments, "--plan", "freeze-then-unfreeze"]) == 0
    said = capsys.readouterr().out
    assert "4 classes" in said
    assert "stride 8: 64 channels → adapters → 64 channels, the output of layer 4" in said
    assert "layers 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in said
    neck = next(line for line in said.splitlines() if "detector.neck" in line)
    assert "frozen" in neck
    assert "all" in neck


def test_options_that_every_stage_overrules_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    say_without_effect({"lr": 0.1, "optimizer": None}, "freeze-then-unfreeze", None)
    assert "--lr has no effect: each stage of the plan freeze-then-unfreeze names its own" in capsys.readouterr().err
    say_without_effect({"lr": None, "optimizer": None, "no_augment": True}, "align-refine", None)
    said = capsys.readouterr().err
    assert "--no-augment has no effect on frozen, where the plan align-refine says how pictures vary" in said
    say_without_effect({"lr": 0.1, "optimizer": "sgd", "no_augment": True}, "one-task-then-joint", None)
    assert capsys.readouterr().err == ""


def test_epochs_that_every_stage_overrules_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("stages:\n- {name: a, epochs: 1}\n- {name: b, epochs: 2}\n")
    given = {"lr": None, "optimizer": None, "epochs": 9}
    say_without_effect(given, str(plan), None)
    assert "--epochs has no effect: each stage of the plan" in (said := capsys.readouterr().err)
    assert "3 in all" in said
    plan.write_text("stages:\n- {name: a, epochs: 1}\n- {name: b}\n")
    say_without_effect(given, str(plan), None)
    assert capsys.readouterr().err == ""


OWN = """
from torch.nn import functional as F
from mtyolo import Level
from mtyolo.extractors import Extractor


class Colours(Extractor):
    def __init__(self):
        super().__init__()
        self.levels = tuple(Level(stride, 3) for stride in (8, 16, 32))

    def forward(self, images):
        return {level.stride: F.avg_pool2d(images, level.stride) for level in self.levels}
"""

OWN_MODEL = """
extractor: {name: "colours_of_mine:Colours"}
adapters: {type: fusion}
detector: {graph: yolov5n.yaml}
"""


def test_an_extractor_of_ones_own_from_training_to_judging_its_stored_features(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The class lies in the folder one stands in. `last` is opened again, resumed, and judged from a store as well."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "colours_of_mine.py").write_text(OWN)
    (tmp_path / "own.yaml").write_text(OWN_MODEL)
    common, last = ["--data", str(shapes), "--imgsz", "64"], "run/last.safetensors"
    training = ["--epochs", "1", "--batch", "4", "--workers", "0", "--device", "cpu", "--val-every", "2"]
    assert main(["train", "-m", "own.yaml", *common, *training, "--out", "run", "--trust"]) == 0
    assert main(["train", "--resume", "run", "--trust", "--epochs", "5"]) == 0
    said = capsys.readouterr().err
    assert "--epochs has no effect beside --resume" in said
    assert said.count("has no effect") == 1
    assert main(["extract", "-m", "own.yaml", *common, "--out", "store", "--dtype", "fp32", "--trust"]) == 0
    found = []
    for source in ([], ["--features", "store"]):
        assert main(["val", "-m", last, *common, *source, "--trust", "--json", f"{len(source)}.json"]) == 0
        found.append(json.loads((tmp_path / f"{len(source)}.json").read_text())["fitness"])
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert mtyolo.validate(last, shapes, features="store", trust=True).fitness == pytest.approx(found[0], abs=1e-6)
    picture = str(next((shapes.parent / "images" / "val").iterdir()))
    assert len(mtyolo.predict(last, picture, size=64, trust=True)) == 1
    with pytest.raises(mtyolo.ConfigError, match="would import code"):
        mtyolo.predict(last, picture, size=64)
    for source in ([], ["--features", "store"]):
        sheet = f"{len(source)}.png"
        assert main(["val", "-m", last, *common, *source, "--trust", "--pictures", sheet]) == 0
    assert ImageChops.difference(Image.open("0.png"), Image.open("2.png")).getbbox() is None


def test_features_of_an_extractor_with_random_weights_come_with_a_warning(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn = OWN.replace("for stride in (8, 16, 32))", "for stride in (8, 16, 32))\n        self.drawn = Linear(1, 1)")
    (tmp_path / "drawn_by_chance.py").write_text(
        drawn.replace("from mtyolo", "from torch.nn import Linear\nfrom mtyolo", 1)
    )
    (tmp_path / "own.yaml").write_text(OWN_MODEL.replace("colours_of_mine", "drawn_by_chance"))
    arguments = ["extract", "-m", "own.yaml", "-d", str(shapes), "--imgsz", "64", "--out", "store", "--trust"]
    assert main(arguments) == 0
    assert "drawn_by_chance:Colours has other weights each time it is made" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (["--plan", "align"], True),
        (["--plan", "both.yaml"], False),
        (["--plan", "frozen.yaml"], True),
        (["--plan", "all-at-once"], False),
    ],
)
def test_an_extractor_from_chance_that_no_stage_trains_comes_with_a_warning(
    options: list[str],
    warned: bool,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "both.yaml").write_text("stages: [{name: a, train: [extractor, adapters]}]")
    (tmp_path / "frozen.yaml").write_text("stages: [{name: a, train: all, freeze: [extractor]}]")
    extractor = "extractor: {name: timm/mobilenetv2_035, weights: WEIGHTS}\n"
    (tmp_path / "m.yaml").write_text(extractor.replace("WEIGHTS", "none") + "detector: {graph: yolov5n.yaml}\n")
    weights = save_weights(build("m.yaml", names=dict(enumerate(CLASSES))), tmp_path / "learned.safetensors")
    arguments = ["train", "-d", str(shapes), "--imgsz", "64", "--batch", "2", "--workers", "0", "--dry-run", *options]
    for source in (["-m", "m.yaml"], ["-m", str(weights)]):
        main([*arguments, *source])
        said = capsys.readouterr().err
        assert ("has its weights from chance" in said) == (warned and source[1] == "m.yaml"), said


def test_the_command_to_go_on_with_can_be_copied(tmp_path: Path) -> None:
    said = str(Interrupted(tmp_path / "my run", signal.SIGINT, imports=True))
    assert f"mtyolo.train(resume='{tmp_path}/my run', trust=True)" in said
    assert said.endswith(f"go on with: mtyolo train --resume '{tmp_path}/my run' --trust")
    assert "--trust" not in str(Interrupted(tmp_path, signal.SIGINT))


def test_freeze_det_is_gentle_with_adapters_that_were_trained(capsys: pytest.CaptureFixture[str]) -> None:
    model = build("yolov5n.yaml")
    assert freezing_plan(Path("runs/train/best.safetensors"), model, None) == "refine"
    assert freezing_plan(Path("model.yaml"), model, None) == "freeze-then-unfreeze"
    assert "warning: --freeze-det: the detector of model.yaml has no weights" in capsys.readouterr().err
    detector = model.config.detector.model_copy(update={"weights": "yolov5n.pt"})
    model.config = model.config.model_copy(update={"detector": detector})
    assert freezing_plan(Path("model.yaml"), model, None) == "freeze-then-unfreeze"
    assert freezing_plan(Path("yolov5n.pt"), model, None) == "freeze-then-unfreeze"
    assert capsys.readouterr().err == ""


def test_freeze_det_goes_on_aligning_only_to_a_detector_that_is_still_official(test_data: Path, tmp_path: Path) -> None:
    model = build(
        {
            "extractor": {"name": "timm/mobilenetv2_035", "weights": "none"},
            "detector": {"graph": "yolov5n.yaml", "weights": str(test_data / "weights" / "yolov5n.pt")},
        }
    )
    path, store = Path("best.safetensors"), tmp_path / "store"
    assert freezing_plan(path, model, None) == "align-refine"
    store.mkdir()
    assert freezing_plan(path, model, store) == "refine", "a store without what the replaced layers gave"
    (store / "replaced").mkdir()
    assert freezing_plan(path, model, store) == "align-refine"
    with torch.no_grad():
        model.graph.layers["23"].cv1.bn.running_mean[0] += 1
    assert freezing_plan(path, model, None) == "refine", "a detector that moved understands other features"


@pytest.mark.slow
def test_a_dry_run_where_a_run_is_says_so(run: Path, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--model", "yolov5n.yaml", "--data", str(shapes), "--out", str(run), *SMALL, "--dry-run"]
    assert main(arguments) == USER_ERROR
    assert "a run is already there" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_says_how_long_all_would_take(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "--model", "yolov5n-multitask.yaml", "--data", str(shapes), *SMALL, "--workers", "0"]
    assert main([*arguments, "--epochs", "4", "--batch", "4", "--freeze-det", "--freeze-epochs", "3", "--dry-run"]) == 0
    said = capsys.readouterr()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.out.splitlines() if "│" in line]
    assert [(row[0], row[1]) for row in rows] == [("frozen", "3"), ("joint", "1"), ("all", "")]
    assert rows[0][4].endswith(" ms")
    assert list(tmp_path.iterdir()) == []
