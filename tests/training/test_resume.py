"""Nothing lost: a run that was cut off goes on to the same weights, to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mtyolo.api import build
from mtyolo.checkpoint import load
from mtyolo.config.model import KeypointConfig
from mtyolo.config.training import AugmentConfig, TrainConfig
from mtyolo.errors import CheckpointError, ConfigError, DataError
from mtyolo.model import Model
from mtyolo.training.records.judging import Judge
from mtyolo.training.records.run import alone_in, run_folder
from mtyolo.training.stopping import Interrupted
from mtyolo.training.train import train

PLAN = {
    "balance": "uncertainty",
    "stages": [
        {"name": "frozen", "freeze": ["detector"], "epochs": 2, "optimizer": "adamw", "lr": 0.001},
        {"name": "joint", "epochs": 2, "lr_scale": {"detector": 0.1}},
    ],
}

MakeModel = Callable[[], Model]


class SignalAfter:
    """A validation that finds nothing, and sends this process a signal when it is asked for the n-th time."""

    def __init__(self, times: int, number: int) -> None:
        self.times = times
        self.number = number
        self.fitness = 0.5

    def as_dict(self) -> dict[str, Any]:
        return {"fitness": self.fitness}

    def __call__(self, *arguments: Any, **options: Any) -> SignalAfter:
        self.times -= 1
        if self.times == 0:
            os.kill(os.getpid(), self.number)
        return self


def states_are_equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(states_are_equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(states_are_equal, first, second))
    return first == second


@pytest.fixture(scope="module")
def whole(make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    train(make_model(), shapes, out=out, judge=Judge(SignalAfter(0, 0)), plan=PLAN, config=config, progress=False)
    return out


def state_of(out: Path) -> dict[str, Any]:
    return torch.load(out / "state.pt", weights_only=True)


def assert_same_end(first: Path, second: Path) -> None:
    expected, found = state_of(first), state_of(second)
    for part in ("model", "ema", "run", "position", "random"):
        assert states_are_equal(expected[part], found[part]), part
    assert states_are_equal(*(load_file(out / "last.safetensors") for out in (first, second)))
    assert (first / "results.csv").read_text() == (second / "results.csv").read_text()


@pytest.mark.parametrize(("stop_at", "stage", "epoch"), [(1, 0, 0), (2, 0, 1), (4, 1, 1)])
def test_a_run_cut_off_inside_an_epoch_ends_in_the_same_state(
    whole: Path,
    make_model: MakeModel,
    shapes: Path,
    config: TrainConfig,
    tmp_path: Path,
    stop_at: int,
    stage: int,
    epoch: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    judge = Judge(SignalAfter(stop_at, signal.SIGTERM))
    with pytest.raises(Interrupted, match="go on with: mtyolo train --resume"):
        train(make_model(), shapes, out=tmp_path, judge=judge, plan=PLAN, config=config, progress=False)
    assert state_of(tmp_path)["position"] == {"stage": stage, "epoch": epoch, "batch": 1}
    capsys.readouterr()
    train(resume=tmp_path, judge=Judge(SignalAfter(0, 0)))
    name = PLAN["stages"][stage]["name"]  # type: ignore[index]
    assert (
        f"goes on with epoch {2 * stage + epoch + 1}, stage {name}, after 1 of its batches" in capsys.readouterr().out
    )

    assert_same_end(whole, tmp_path)


def test_interruption_tells_the_shell_which_signal_it_was(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored in what a shell runs in the background
    with pytest.raises(Interrupted) as caught:
        train(make_model(), shapes, config=config, out=tmp_path, judge=Judge(SignalAfter(1, signal.SIGINT)))
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before, "Ctrl-C works again as before"


def test_a_finished_run_resumes_to_itself_and_is_not_written_over(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    first = train(make_model(), shapes, config=config, out=tmp_path, progress=False)
    before = state_of(tmp_path)["model"]
    again = train(resume=tmp_path, progress=False)
    assert again.results == first.results
    assert states_are_equal(state_of(tmp_path)["model"], before)
    with pytest.raises(ConfigError, match=r"a run is already there; go on with --resume"):
        train(make_model(), shapes, config=config, out=tmp_path, progress=False)


def test_a_run_from_before_there_were_heatmaps_goes_on_without_them(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    config_of = make_model().config
    tasks = config_of.tasks.model_copy(update={"keypoint": KeypointConfig(points=2, heatmaps=False)})
    model = build(config_of.model_copy(update={"tasks": tasks}), data=shapes)
    judge = Judge(SignalAfter(2, signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(model, shapes, out=tmp_path, judge=judge, plan=PLAN, config=config, progress=False)
    state = state_of(tmp_path)
    state["settings"]["model"] = state["settings"]["model"].replace(',"heatmaps":false', "")  # as it was then
    assert "heatmaps" not in state["settings"]["model"]
    torch.save(state, tmp_path / "state.pt")
    run = train(resume=tmp_path, judge=Judge(SignalAfter(0, 0)), progress=False)
    assert run.results[-1]["epoch"] == config.epochs * 2
    assert load(run.last).keypoint.heatmaps is False


def test_a_data_file_whose_classes_were_swapped_meanwhile_is_refused(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    data = tmp_path / "data.yaml"
    content = yaml.safe_load(shapes.read_text()) | {"path": str(shapes.parent)}
    data.write_text(yaml.safe_dump(content))
    judge = Judge(SignalAfter(2, signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(make_model(), data, out=tmp_path / "run", judge=judge, plan=PLAN, config=config, progress=False)
    data.write_text(yaml.safe_dump(content | {"names": {0: "disc", 1: "square"}}))
    with pytest.raises(ConfigError, match=r"0 is 'disc' in the data and 'square' in the model"):
        train(resume=tmp_path / "run", progress=False)


def test_what_a_killed_run_was_writing_goes_when_it_is_resumed(tmp_path: Path) -> None:
    unfinished = (".state.pt.123", ".best.safetensors.7", ".results.csv.99", ".42.results.png", ".val_joint.42.jpg")
    others = (".gitignore", ".notes.txt", "state.pt.123", "results.csv")
    for name in (*unfinished, *others):
        (tmp_path / name).touch()
    with alone_in(run_folder(None, resume=tmp_path)):
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, ".lock"])


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path: Path) -> None:
    hold = "import sys; from mtyolo.training.records.run import alone_in; from pathlib import Path\n"
    hold += "with alone_in(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command, pipe = [sys.executable, "-c", hold, str(tmp_path)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        (tmp_path / "state.pt").touch()
        for new in (False, True):
            with pytest.raises(ConfigError, match="another process is training there"), alone_in(tmp_path, new=new):
                pass
        other.kill()
    with alone_in(tmp_path):
        pass


def test_a_run_that_failed_before_its_first_step_leaves_its_folder_to_the_next(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*arguments: Any) -> bool:
        raise RuntimeError("out of memory")

    start = {"config": config, "judge": Judge(SignalAfter(0, 0)), "out": tmp_path, "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr("mtyolo.training.train.training_step", too_large)
        with pytest.raises(RuntimeError, match="out of memory"):
            train(make_model(), shapes, **start)
    picture, results = ((tmp_path / name).read_bytes() for name in ("train_batch.jpg", "results.csv"))
    assert state_of(tmp_path)["position"] == {"stage": 0, "epoch": 0, "batch": 0}
    plain = config.model_copy(update={"augment": AugmentConfig(mosaic=0), "epochs": 1})
    run = train(make_model(), shapes, **start | {"config": plain})
    assert [row["epoch"] for row in run.results] == [0, 1]
    assert (tmp_path / "train_batch.jpg").read_bytes() != picture, "the new run's own"
    assert (tmp_path / "results.csv").read_bytes() != results
    with pytest.raises(ConfigError, match="a run is already there; go on with --resume"):
        train(make_model(), shapes, **start)


def test_what_an_assistant_has_learned_is_not_written_over(tmp_path: Path, whole: Path) -> None:
    at_start = state_of(whole) | {"position": {"stage": 0, "epoch": 0, "batch": 0}}
    assistant = tmp_path / "assistants" / "small"
    assistant.mkdir(parents=True)
    torch.save(at_start, tmp_path / "state.pt")
    shutil.copy(whole / "state.pt", assistant)
    with pytest.raises(ConfigError, match="a run is already there"), alone_in(tmp_path, new=True):
        pass
    torch.save(at_start, assistant / "state.pt")
    with alone_in(tmp_path, new=True):
        assert not list(tmp_path.rglob("state.pt")), "or the new run's assistant would go on as the old one began"


def test_a_start_that_another_process_may_be_at_is_not_taken_over(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(state_of(whole) | {"position": {"stage": 0, "epoch": 0, "batch": 0}}, tmp_path / "state.pt")
    monkeypatch.setattr("mtyolo.training.records.run.fcntl", None)  # as where there are no locks
    with pytest.raises(ConfigError, match="a run is already there"), alone_in(tmp_path, new=True):
        pass
    with alone_in(tmp_path):
        pass


def test_a_state_that_can_not_be_read_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"state\.pt: damaged.*name another --out"), alone_in(tmp_path, new=True):
        pass


@pytest.fixture
def cut_off(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Path:
    """A folder with a run that was stopped in its first epoch, and its labels."""
    content = yaml.safe_load(shapes.read_text()) | {"path": str(shapes.parent)}
    content["annotations"] = {split: str(tmp_path / f"{split}.json") for split in ("train", "val")}
    for split in ("train", "val"):
        shutil.copy(shapes.parent / f"{split}.json", tmp_path)
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    judge, plan = Judge(SignalAfter(1, signal.SIGTERM)), "all-at-once"
    with pytest.raises(Interrupted):
        train(make_model(), tmp_path / "data.yaml", plan=plan, config=config, out=tmp_path / "run", judge=judge)
    capsys.readouterr()
    return tmp_path


def without(labels: str, *keys: str) -> str:
    """A COCO json whose objects do not have these."""
    content = json.loads(labels)
    content["annotations"] = [
        {key: value for key, value in one.items() if key not in keys} for one in content["annotations"]
    ]
    return json.dumps(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda labels: labels.replace('"category_id": 0', '"category_id": 1', 1),
        lambda labels: labels.replace('"iscrowd": 0', '"iscrowd": 1', 1),
        lambda labels: labels.replace('"keypoints": [', '"keypoints": [1, 1, 2, 1, 1, 2], "before": [', 1),
        lambda labels: labels.replace('"segmentation": [[', '"segmentation": [[0, 0, 5, 0, 5, 5]], "before": [[', 1),
    ],
    ids=["class", "crowd", "points", "mask"],
)
def test_other_labels_than_at_the_start_are_said(
    change: Callable[[str], str], shapes: Path, cut_off: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, whose in {"": "", "train": "training", "val": "validation"}.items():
        shutil.copytree(cut_off / "run", cut_off / f"again{split}")
        if split:
            for one in ("train", "val"):
                labels = (shapes.parent / f"{one}.json").read_text()
                (cut_off / f"{one}.json").write_text(change(labels) if one == split else labels)
        train(resume=cut_off / f"again{split}")
        said = capsys.readouterr().out.replace("\n", " ")
        assert said.count("not those of the run's start") == bool(split)
        assert f"the {whose} images or labels are not" in said or not split


@pytest.mark.parametrize("balance", ["fixed", "uncertainty", "gradnorm"])
def test_a_task_whose_labels_went_in_the_middle_of_a_stage_is_said_with_a_way_out(
    balance: str, make_model: MakeModel, config: TrainConfig, cut_off: Path
) -> None:
    plan, judge = {"balance": balance, "stages": [{"name": "all"}]}, Judge(SignalAfter(1, signal.SIGTERM))
    out = cut_off / "other"
    with pytest.raises(Interrupted):
        train(make_model(), cut_off / "data.yaml", plan=plan, config=config, out=out, judge=judge, progress=False)
    labels = (cut_off / "train.json").read_text()
    (cut_off / "train.json").write_text(without(labels, "segmentation"))
    with pytest.raises(CheckpointError, match=r"begun with other parts: with labels for other tasks, .*; put the lab"):
        train(resume=out, progress=False)
    (cut_off / "train.json").write_text(labels)
    assert train(resume=out, progress=False).results[-1]["epoch"] == 2


def test_a_run_whose_data_was_moved_says_how_to_name_its_new_place_and_remembers_it(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    shutil.copytree(shapes.parent, tmp_path / "data")
    data, moved, judge = tmp_path / "data" / "shapes.yaml", tmp_path / "moved", Judge(SignalAfter(1, signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(make_model(), data, config=config, out=tmp_path / "run", judge=judge, progress=False)
    data.parent.rename(moved)
    where = rf"data/shapes\.yaml: the data of {tmp_path / 'run'} is not there; name its new place with --data"
    with pytest.raises(DataError, match=where):
        train(resume=tmp_path / "run", progress=False)
    judge = Judge(SignalAfter(1, signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(None, moved / "shapes.yaml", resume=tmp_path / "run", judge=judge, progress=False)
    assert train(resume=tmp_path / "run", progress=False).results[-1]["epoch"] == 2


def test_a_finished_run_remembers_where_its_data_is_now(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    shutil.copytree(shapes.parent, tmp_path / "data")
    once = config.model_copy(update={"epochs": 1})
    train(make_model(), tmp_path / "data" / "shapes.yaml", config=once, out=tmp_path / "run", progress=False)
    before = state_of(tmp_path / "run")
    (tmp_path / "data").rename(tmp_path / "moved")
    train(None, tmp_path / "moved" / "shapes.yaml", resume=tmp_path / "run", progress=False)
    assert len(train(resume=tmp_path / "run", progress=False).results) == 1
    after = state_of(tmp_path / "run")
    assert after.pop("settings") == before.pop("settings") | {"data_path": str(tmp_path / "moved" / "shapes.yaml")}
    assert states_are_equal(after, before)


def test_a_file_in_the_place_of_a_runs_folder_is_named(tmp_path: Path) -> None:
    (file := tmp_path / "file").touch()
    for out, reason in ((file, "is a file"), (file / "run", "can not be made: Not a directory")):
        with pytest.raises(ConfigError, match=rf"^{out}: the run's folder {reason}; name another --out \(in Python"):
            run_folder(out)


def test_a_run_that_fails_at_its_start_leaves_no_folder_that_was_named_for_it(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = {"stages": [{"name": "one", "lr_scale": {"detektor": 0.1}}]}
    with pytest.raises(ConfigError, match="detektor"):
        train(make_model(), shapes, plan=wrong, config=config, progress=False)
    assert not list((tmp_path / "runs").iterdir())
    with pytest.raises(ConfigError, match="detektor"):
        train(make_model(), shapes, plan=wrong, config=config, out=tmp_path / "mine", progress=False)
    assert (tmp_path / "mine").is_dir(), "a folder that a person named stays"


IN_A_GROUP = """
import multiprocessing, sys
from mtyolo.cli.main import main
multiprocessing.set_start_method(sys.argv[3])
sys.exit(main(["train", "-m", "yolov5n.yaml", "-d", sys.argv[1], "--out", sys.argv[2], "--imgsz", "64", "--batch", "2",
               "--epochs", "500", "--workers", "1", "--device", "cpu", "--val-every", "500"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "start"),
    [(signal.SIGTERM, "fork"), (signal.SIGINT, "fork"), (signal.SIGINT, "spawn"), (signal.SIGTERM, "forkserver")],
)
def test_a_signal_to_a_whole_group_of_processes_saves(
    number: signal.Signals, start: str, shapes: Path, tmp_path: Path
) -> None:
    """As terminals, `timeout` and service managers send it: the processes that read images get it, too; where they are
    not forks, without the handlers of the one that trains."""
    out = tmp_path / "run"
    command = [sys.executable, "-c", IN_A_GROUP, str(shapes), str(out), start]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        while not (out / "last.safetensors").exists() and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=60)
    assert f"{number.name}: saved" in said
    assert process.returncode == 128 + number


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"\x80\x04."])
def test_a_damaged_state_is_refused_in_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.pt: damaged"):
        train(resume=tmp_path)


def test_a_model_that_the_run_did_not_train_is_refused_in_one_sentence_and_stays_as_it_is(
    make_model: MakeModel, whole: Path, shapes: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    graph = make_model().config.detector.graph
    other = build({"detector": {"graph": graph}, "tasks": {"segment": {}, "keypoint": {}}}, data=shapes)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    words = r"of another model, .*: \d+ tensors differ, first branches\.segment\S*; beside resume= leave the model out"
    with pytest.raises(CheckpointError, match=words):
        train(other, shapes, resume=tmp_path / "run", progress=False)
    assert states_are_equal(other.state_dict(), before)


def test_resuming_where_nothing_is_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file; give --resume the folder of a run"):
        train(resume=tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda saved: saved.pop("settings"), "'settings'"),
        (lambda saved: saved.pop("ema"), "'ema'"),
        (lambda saved: saved["settings"].update(newer="x"), "unexpected keyword argument 'newer'"),
        (lambda saved: saved["settings"].update(plan='{"stages": 3}'), "stages"),
    ],
)
def test_a_state_of_another_version_is_named(
    change: Callable[[dict[str, Any]], object], words: str, whole: Path, tmp_path: Path
) -> None:
    saved = state_of(whole)
    change(saved)
    torch.save(saved, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=f"was written by another version of mtyolo: .*{words}"):
        train(resume=tmp_path, progress=False)
