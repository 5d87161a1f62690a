"""A person's mistake ends in one sentence that names the place and the remedy, exit code 2, and no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import mtyolo
from mtyolo.cli.main import INTERRUPTED, USER_ERROR, main
from mtyolo.config.model import shipped_configs
from mtyolo.data.shapes import make_shapes

DATA = str(shipped_configs() / "yolov5n.yaml")
"""A file that is there; what is wrong is said before it is read."""


def refusal(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail; returns its one sentence."""
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert code == USER_ERROR, said
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("mtyolo: error: ")
    return last.removeprefix("mtyolo: error: ")


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_wrong_key_names_file_line_and_the_right_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = written(tmp_path / "model.yaml", "detector:\n  graph: yolov5n.yaml\n  entri: {4: 8}\n")
    said = refusal(["show", model], capsys)
    assert f"{model}:3" in said
    assert "'detector.entri'" in said
    assert "'entry'" in said


def test_wrong_module_in_a_graph_names_line_and_nearest_module(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (shipped_configs() / "yolov5n.yaml").read_text()
    line = next(number for number, row in enumerate(text.splitlines(), 1) if "SPPF" in row)
    graph = written(tmp_path / "graph.yaml", text.replace("SPPF", "SPPFF"))
    said = refusal(["show", graph], capsys)
    assert f"{graph}:{line}" in said
    assert "SPPFF" in said
    assert "'SPPF'" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "{missing}.yaml"],
        ["show", "{missing}.pt"],
        ["show", "{missing}.safetensors"],
        ["val", "--model", "yolov5n.yaml", "--data", "{missing}.yaml"],
        ["train", "--model", "yolov5n.yaml", "--data", "{missing}.yaml"],
        ["train", "--resume", "{missing}"],
        ["predict", "--model", "yolov5n.yaml", "--source", "{missing}.jpg"],
        ["train", "--model", "yolov5n.yaml", "--data", DATA, "--config", "{missing}.yaml"],
    ],
    ids=" ".join,
)
def test_missing_file_is_named(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "nowhere")
    assert missing in refusal([argument.format(missing=missing) for argument in arguments], capsys)


def test_unknown_timm_model_gets_the_nearest_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "extractor: {name: timm/resnet51, weights: none}\ndetector: {graph: yolov5n.yaml}\n"
    said = refusal(["show", written(tmp_path / "model.yaml", text)], capsys)
    assert "resnet51" in said
    assert "did you mean" in said


def test_class_out_of_range_names_file_line_and_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for kind in ("images", "labels"):
        (tmp_path / kind / "val").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "images/val/one.png")
    labels = written(tmp_path / "labels/val/one.txt", "0 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.2 0.2\n")
    data = written(tmp_path / "data.yaml", yaml.safe_dump({"val": "images/val", "names": ["ball", "box"]}))
    said = refusal(["val", "--model", "yolov5n.yaml", "--data", data, "--strict"], capsys)
    assert f"{labels}:2" in said
    assert "class 7 is not in 0..1" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optimizer", "adam"], ["optimizer", "'sgd' or 'adamw'", "'adam'"]),
        (["--lr", "0"], ["lr", "greater than 0"]),
        (["--lr", "inf"], ["lr", "finite", "inf"]),
        (["--lr", "nan"], ["lr", "nan"]),
        (["--precision", "fp8"], ["precision", "'fp8'"]),
        (["--epochs", "0"], ["--epochs"]),
        (["--batch", "many"], ["batch", "integer", "'many'"]),
        (["--freeze-det", "--plan", "all-at-once"], ["--freeze-det", "--plan"]),
        (["--frezze-det"], ["--frezze-det", "--freeze-det"]),
        (["--seed", "-1"], ["seed", "greater than or equal to 0", "-1"]),
        (["--seed", "4294967296"], ["seed", "4294967295"]),
        (["--imgsz", "1000000000"], ["imgsz", "16384"]),
        (["--batch", "auto", "--plan", "distill-in-two-steps"], ["--batch auto", "assistants"]),
        (["--batch", "auto", "--plan", "distill-outputs"], ["--batch auto", "teacher", "is asked beside it; say how"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_wrong_option_is_named(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(["train", "--model", "yolov5n.yaml", "--data", DATA, *arguments], capsys)
    assert all(word in said for word in words), said


def test_beside_saved_outputs_the_student_is_all_that_batch_auto_must_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(tmp_path / "teacher.json", "{}")
    stages = [{"name": "one", "distill": {"teachers": [{"weights": str(tmp_path), "output": {"kl": 1}}]}}]
    plan = written(tmp_path / "plan.yaml", yaml.safe_dump({"stages": stages}))
    model, data = "yolov5n.yaml", tmp_path / "data.yaml"
    said = refusal(["train", "--model", model, "--data", data, "--batch", "auto", "--plan", plan], capsys)
    assert "data.yaml: no such file" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--seed", "-1"], ["--seed", "0"]),
        (["demo", "--seed", "4294967296"], ["--seed", "4294967295"]),
        (["val", "--model", "yolov5n.yaml", "--data", DATA, "--imgsz", "1000000000"], ["--imgsz", "16384"]),
        (["predict", "--model", "yolov5n.yaml", "--source", "a.jpg", "--imgsz", "16385"], ["--imgsz", "16384"]),
        (["show", "yolov5n.yaml", "--imgsz", "1000000000"], ["--imgsz", "16384"]),
        (["extract", "--model", "yolov5n.yaml", "--data", DATA, "--imgsz", "16385"], ["--imgsz", "16384"]),
        (["extract", "--model", "yolov5n.yaml", "--data", DATA, "--views", "1001"], ["--views", "1000"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_number_that_is_too_large_or_small_is_named(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(arguments, capsys)
    assert all(word in said for word in words), said


def test_a_gain_below_zero_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = written(tmp_path / "config.yaml", "gains: {box: -1}\n")
    said = refusal(["train", "--model", "yolov5n.yaml", "--data", DATA, "--config", config], capsys)
    assert f"{config}:1: gains.box: Input should be greater than or equal to 0, got -1" in said


def test_new_run_needs_model_and_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--model and --data" in refusal(["train"], capsys)


def test_unknown_command_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'train'?" in refusal(["trian"], capsys)


def test_unknown_plan_gets_the_nearest(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--model", "yolov5n.yaml", "--data", shapes, "--plan", "freeze-then-unfreze"]
    assert "'freeze-then-unfreeze'" in refusal([*arguments, "--out", tmp_path / "run"], capsys)


def test_unknown_split_gets_the_nearest(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(["val", "--model", "yolov5n.yaml", "--data", shapes, "--split", "vall"], capsys)
    assert "'val'" in said


def test_device_that_is_not_there_is_named(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(["val", "--model", "yolov5n.yaml", "--data", shapes, "--device", "cuda:99"], capsys)
    assert "cuda:99" in said
    assert "auto" in said


def test_demo_names_a_wrong_device_before_it_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--device gpu9" in refusal(["demo", "--device", "gpu9", "--out", tmp_path / "demo"], capsys)
    assert not (tmp_path / "demo").exists()


def test_folder_that_can_not_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "file", "")
    assert str(file) in refusal(["demo", "--out", file / "demo"], capsys)


def test_ctrl_c_ends_with_a_sentence_and_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(path: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mtyolo.opening.open_model", interrupted)
    assert main(["show", "yolov5n.yaml"]) == INTERRUPTED
    assert capsys.readouterr().err == "mtyolo: error: interrupted\n"


@pytest.mark.parametrize("arguments", [["show", "nowhere.yaml"], ["val", "-m", "yolov5n.pt", "-d", "no.yaml"]], ids=str)
def test_a_file_that_is_not_there_is_named_before_anything_is_imported(arguments: list[str]) -> None:
    code = (
        "import sys; from mtyolo.cli.main import main; code = main(sys.argv[1:]); "
        "print(code, [name for name in ('torch', 'timm', 'ultralytics') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "2 []"
    assert "no such" in done.stderr


def test_console_script_exits_with_the_code() -> None:
    command = [sys.executable, "-m", "mtyolo", "show", "nowhere.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == USER_ERROR
    assert done.stdout == ""
    assert done.stderr.startswith("mtyolo: error: nowhere.yaml: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--json", "--pictures"])
def test_val_writes_over_nothing_that_it_reads(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = make_shapes(tmp_path / "shapes", train=1, val=1, size=64)
    (photo,) = (tmp_path / "shapes" / "images" / "val").iterdir()
    weights = mtyolo.save_weights(mtyolo.build("yolov5n.yaml", data=shapes), tmp_path / "n.safetensors")
    for taken in (shapes, photo, weights):
        before = taken.read_bytes()
        assert "would be written over" in refusal(["val", "--model", weights, "--data", shapes, option, taken], capsys)
        assert taken.read_bytes() == before


def test_predict_writes_its_json_over_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_shapes(tmp_path, train=1, val=1, size=64)
    (photo,) = (tmp_path / "images" / "val").iterdir()
    before = photo.read_bytes()
    arguments = ["predict", "--model", "yolov5n.yaml", "--source", photo, "--json", photo]
    assert "would be written over" in refusal(arguments, capsys)
    assert photo.read_bytes() == before


def test_a_dry_run_into_what_is_no_folder_is_refused_as_the_run_would_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = make_shapes(tmp_path / "shapes", train=2, val=1, size=64)
    arguments = ["train", "--model", "yolov5n.yaml", "--data", shapes, "--imgsz", 64, "--dry-run", "--out"]
    assert "the run's folder is a file" in refusal([*arguments, shapes], capsys)
    assert f"{shapes / 'a' / 'b'}: {shapes} is a file; name another --out" in refusal(
        [*arguments, shapes / "a" / "b"], capsys
    )


def test_a_dry_run_goes_on_with_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--dry-run is for a new run" in refusal(["train", "--resume", tmp_path, "--dry-run"], capsys)
