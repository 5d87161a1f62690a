"""Teachers in the training loop."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from tiny_students import SIZE, tiny_model

from mtyolo.assembly import build
from mtyolo.checkpoint import load, save_weights
from mtyolo.config.data import DataConfig
from mtyolo.config.distill import DistillConfig
from mtyolo.config.model import shipped_configs
from mtyolo.config.plan import read_plan
from mtyolo.config.training import TrainConfig
from mtyolo.data.loader import Dataset, make_loader
from mtyolo.data.split import load_split
from mtyolo.distill.objective import make_distiller
from mtyolo.distill.pictures import drawn, keys_of
from mtyolo.errors import CheckpointError, ConfigError, DataError
from mtyolo.structures import Targets
from mtyolo.training import train as loop
from mtyolo.training.objectives.alignment import level_errors
from mtyolo.training.records.run import Run
from mtyolo.training.stopping import Interrupted
from mtyolo.training.train import train

PLAIN = {"augment": False}
FEATURES = [{"method": "mgd"}, {"method": "gradient"}, {"method": "cwd", "layers": [13, 17]}]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures with two boxes each, in YOLO text."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    for number in range(6):
        cv2.imwrite(str(root / "images" / f"{number}.png"), random.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8))
        (root / "labels" / f"{number}.txt").write_text("0 0.3 0.4 0.2 0.3\n1 0.7 0.6 0.3 0.2\n")
    return root


@pytest.fixture(scope="module")
def data(photos: Path) -> DataConfig:
    return DataConfig(path=str(photos), train="images", val="images", names={0: "square", 1: "disc"})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_weights(tiny_model(seed=1), tmp_path_factory.mktemp("teacher") / "teacher.safetensors"))


def with_points(photos: Path, root: Path) -> DataConfig:
    """The same pictures, whose objects have two keypoints, too."""
    (root / "labels-pose").mkdir(parents=True)
    for folder in ("images", "labels"):
        (root / folder).symlink_to(photos / folder)
    for file in (photos / "labels").iterdir():
        rows = [f"{row} 0.3 0.3 2 0.6 0.6 2" for row in file.read_text().splitlines()]
        (root / "labels-pose" / file.name).write_text("\n".join(rows))
    names = {0: "square", 1: "disc"}
    return DataConfig(path=str(root), train="images", val="images", names=names, kpt_shape=(2, 3), flip_idx=[1, 0])


def distilled(
    weights: str,
    data: Any,
    out: Path,
    *,
    stage: Mapping[str, Any] = PLAIN,
    epochs: int = 2,
    tasks: Mapping[str, Any] | None = None,
    **options: Any,
) -> Run:
    chosen = {key: options.pop(key) for key in ("output", "features", "cache", "folder") if key in options}
    teacher = {"weights": weights} | (chosen or {"output": {"scaled": 1.0}})
    plan = {"stages": [{"name": "d", "distill": {"teachers": [teacher], **options}, **stage}]}
    config = TrainConfig(epochs=epochs, imgsz=SIZE, batch=3, workers=0, device="cpu")
    return train(tiny_model(**(tasks or {})), data, plan=plan, config=config, out=out, progress=False)


def interrupted_after(steps: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """A run that is asked to stop in this step."""
    step, done = loop.training_step, []

    def interrupted(*arguments: Any) -> bool:
        done.append(1)
        return step(*arguments) or len(done) == steps

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", interrupted)
        with pytest.raises(Interrupted):
            distilled(**options)


def model_in(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "state.pt", weights_only=True)["model"]  # type: ignore[no-any-return]


def test_every_term_is_a_named_loss_and_all_are_one_beside_the_tasks(
    weights: str, data: DataConfig, tmp_path: Path
) -> None:
    output = {"mse": 0.1, "kl": 1.0, "soft": 1.0, "scaled": 1.0}
    run = distilled(weights, data, tmp_path / "run", output=output, features=FEATURES, epochs=1)
    row = run.results[-1]
    terms = {name: row[name] for name in row if name.startswith("loss/distill.")}
    assert set(terms) == {f"loss/distill.{term}" for term in (*output, "mgd", "gradient", "cwd")}
    assert row["loss/distill"] == pytest.approx(sum(float(value or 0) for value in terms.values()), rel=1e-4)
    assert float(row["loss/detect"] or 0) > 0


@pytest.fixture(scope="module")
def learning(weights: str, data: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with terms that learn something themselves."""
    return distilled(weights, data, tmp_path_factory.mktemp("learning"), features=FEATURES, epochs=1)


def test_the_deployed_file_has_the_student_alone(learning: Run) -> None:
    with safe_open(learning.best, framework="pt") as file:
        saved = {name: file.get_tensor(name).shape for name in file.keys()}  # noqa: SIM118
    assert saved == {name: tensor.shape for name, tensor in tiny_model().state_dict().items()}


def test_projectors_are_no_part_of_the_model_in_the_runs_state(learning: Run) -> None:
    learned = torch.load(learning.out / "state.pt", weights_only=True)
    assert not [name for name in learned["model"] if "projector" in name or "generator" in name]


def test_a_run_with_a_teacher_goes_on_to_the_same_weights(
    weights: str, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So little that the rate is halved after the first epoch.
    monkeypatch.setattr("mtyolo.distill.objective.detection_loss", lambda *_: torch.tensor(1e-9))
    options: dict[str, Any] = {"output": {"scaled": 1.0}, "features": [{"method": "mgd"}], "three_times": True}
    whole = distilled(weights, data, tmp_path / "whole", **options)
    assert whole.results
    first = model_in(tmp_path / "whole")
    for stop_after in (1, 3):
        out = tmp_path / f"cut after {stop_after}"
        interrupted_after(stop_after, monkeypatch, weights=weights, data=data, out=out, **options)
        train(data=data, resume=out, progress=False)
        second = model_in(out)
        assert all(torch.equal(first[name], second[name]) for name in first), stop_after


def test_another_teacher_in_the_place_of_the_first_is_said(
    weights: str, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Path(shutil.copy(weights, tmp_path / "mine.safetensors"))
    interrupted_after(1, monkeypatch, weights=str(mine), data=data, out=tmp_path / "run", output={"scaled": 1.0})
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    train(data=data, resume=tmp_path / "again")
    assert "is not the file of the run's start" not in capsys.readouterr().out.replace("\n", " ")
    save_weights(tiny_model(seed=2), mine)
    train(data=data, resume=tmp_path / "run")
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"teacher {mine}: is not the file of the run's start: the run goes on, but" in said.replace("  ", " ")


def test_of_what_terms_learn_only_biases_do_not_decay(
    weights: str, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"weights": weights, "data": data, "features": [{"method": "mgd"}]}
    interrupted_after(1, monkeypatch, out=tmp_path / "run", **options)
    saved = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["work"]
    *_, decaying, others = saved["optimizer"]["param_groups"]
    biases = [tensor for tensor in saved["distiller"]["learned"].values() if tensor.ndim == 1]
    assert decaying["weight_decay"] > 0
    assert others["weight_decay"] == 0
    assert len(decaying["params"]) == len(others["params"]) == len(biases) == 6, "two convolutions at three layers"
    momenta = [saved["optimizer"]["state"][number]["momentum_buffer"].shape for number in others["params"]]
    assert momenta == [bias.shape for bias in biases]


def test_a_run_from_when_these_biases_decayed_ends_as_it_began(
    weights: str, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_it_was(optimizer: Any, learned: Any, decay: float) -> None:
        optimizer.add_param_group({"params": learned, "scale": 1.0, "weight_decay": decay})

    options = {"weights": weights, "data": data, "features": [{"method": "mgd"}]}
    with monkeypatch.context() as patch:
        patch.setattr("mtyolo.training.work.add_learned", as_it_was)
        distilled(out=tmp_path / "whole", **options)  # type: ignore[arg-type]
        interrupted_after(3, monkeypatch, out=tmp_path / "cut", **options)
    train(data=data, resume=tmp_path / "cut", progress=False)
    first, second = model_in(tmp_path / "whole"), model_in(tmp_path / "cut")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_student_learns_from_a_folder_of_pictures_without_labels(weights: str, photos: Path, tmp_path: Path) -> None:
    run = distilled(weights, photos / "images", tmp_path / "run", epochs=8, stage=PLAIN | {"optimizer": "adamw"})
    losses = [float(row["loss/distill"] or 0) for row in run.results]
    assert "loss/detect" not in run.results[-1]
    assert losses[-1] < 0.8 * losses[0]


def test_from_pictures_alone_a_student_takes_its_teachers_names(weights: str, photos: Path, tmp_path: Path) -> None:
    """Its own are the numbers of a plain layer list."""
    plan = {"stages": [{"name": "d", "distill": {"teachers": [{"weights": weights, "output": {"kl": 1}}]}, **PLAIN}]}
    config = TrainConfig(epochs=1, imgsz=SIZE, batch=3, workers=0, device="cpu")

    def trained(out: str, names: Mapping[int, str]) -> Run:
        student = tiny_model(dict(names))
        return train(student, photos / "images", plan=plan, config=config, out=tmp_path / out, progress=False)

    run = trained("run", {0: "0", 1: "1"})
    assert load(run.best).names == {0: "square", 1: "disc"}
    assert train(resume=run.out, progress=False).results == run.results
    with pytest.raises(
        ConfigError, match=r"does not know 3 of 3 classes.*the teacher has 2: name them in the model file"
    ):
        trained("more", {0: "0", 1: "1", 2: "2"})
    with pytest.raises(ConfigError, match=r"does not know 1 of 2 classes, first 'cube'.*map names that differ"):
        trained("other", {0: "square", 1: "cube"})


def test_with_hard_zero_no_label_is_read(weights: str, data: DataConfig, photos: Path, tmp_path: Path) -> None:
    posed = with_points(photos, tmp_path / "posed")
    labelled = distilled(weights, posed, tmp_path / "labelled", hard=0, tasks={"keypoint": {}})
    unlabelled = distilled(weights, photos / "images", tmp_path / "unlabelled", tasks={"keypoint": {}})
    assert load_split(posed, "train").count("keypoint")
    first, second = (torch.load(run.out / "state.pt", weights_only=True)["model"] for run in (labelled, unlabelled))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_student_that_is_the_teacher_stays_where_it_is(weights: str, data: DataConfig, tmp_path: Path) -> None:
    """In evaluation mode its outputs are the teacher's, so there is nothing to learn."""
    model = tiny_model(seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    teacher = {"weights": weights, "output": {"kl": 1.0, "scaled": 1.0}}
    stage = {"name": "d", "distill": {"teachers": [teacher], "hard": 0}, "norms": "frozen", **PLAIN}
    config = TrainConfig(epochs=1, imgsz=SIZE, batch=3, workers=0, device="cpu", weight_decay=0)
    train(model, data, plan={"stages": [stage]}, config=config, out=tmp_path / "run", progress=False)
    for name, value in model.state_dict().items():
        assert torch.allclose(value, before[name], atol=1e-5), name


def test_cached_draws_repeat_so_that_the_teacher_sees_each_once(weights: str, data: DataConfig, tmp_path: Path) -> None:
    folder = tmp_path / "lessons"
    distilled(weights, data, tmp_path / "run", output={"scaled": 1}, cache=2, folder=str(folder), epochs=5, stage={})
    assert len(list(folder.glob("*.safetensors"))) == 2 * 6


def test_what_is_cached_is_named_where_pictures_are_read(
    weights: str, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the training's own process, which would wait for it."""
    options: dict[str, Any] = {"output": {"scaled": 1}, "cache": True, "folder": str(tmp_path / "lessons"), "epochs": 1}
    distilled(weights, data, tmp_path / "first", **options)
    monkeypatch.setattr("mtyolo.distill.pictures.keys_of", Mock(side_effect=AssertionError))
    distilled(weights, data, tmp_path / "second", **options)
    distilled(str(tmp_path / "lessons"), data, tmp_path / "alone", output={"scaled": 1}, epochs=1)
    monkeypatch.setattr("mtyolo.data.dataset.pixels_key", Mock(side_effect=AssertionError))
    distilled(weights, data, tmp_path / "asked", output={"scaled": 1}, epochs=1)


def test_a_picture_that_a_folder_does_not_know_is_named(weights: str, data: DataConfig, tmp_path: Path) -> None:
    folder, split = tmp_path / "lessons", load_split(data, "train")
    distilled(weights, data, tmp_path / "first", output={"scaled": 1}, cache=True, folder=str(folder), epochs=1)
    (batch,) = make_loader(Dataset(split, SIZE), len(split), shuffle=False, workers=0, seed=0)
    assert batch.images is not None
    (key,) = keys_of(batch.images[4:5])
    (folder / f"{key}.safetensors").unlink()
    said = rf"{split.records[4].path}: {folder}: has no outputs for one of the pictures \({key}\)"
    with pytest.raises(DataError, match=said):
        distilled(str(folder), data, tmp_path / "second", output={"scaled": 1})


@pytest.mark.parametrize("folder", [None, "lessons"])
def test_a_resumed_run_finds_its_cache_wherever_one_stands(
    folder: str | None, weights: str, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    step = loop.training_step
    options = {"output": {"scaled": 1}, "cache": True} | ({"folder": folder} if folder else {})
    monkeypatch.chdir(tmp_path / "here")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", lambda *arguments: step(*arguments) or True)
        with pytest.raises(Interrupted):
            distilled(weights, data, tmp_path / "run", **options)
    cached = list((tmp_path / "here").rglob("*.safetensors"))
    assert len(cached) == 3
    monkeypatch.chdir(tmp_path / "there")
    train(data=data, resume=tmp_path / "run", progress=False)
    assert not list((tmp_path / "there").iterdir())
    found = list((tmp_path / "here").rglob("*.safetensors"))
    assert len(found) == 6
    assert {path.parent for path in cached} == {path.parent for path in found}


@pytest.mark.parametrize(
    ("options", "stage", "message"),
    [
        ({"output": {"scaled": 1}, "cache": True}, {}, "cache: true never meets the same picture twice"),
        ({"output": {"masks": 1}}, PLAIN, "masks teaches the student's segment branch, which it does not have"),
        ({"features": [{"method": "cwd", "layers": [99]}]}, PLAIN, "layer 99 is not built in this model"),
        ({"features": [{"method": "cwd", "levels": [1, 2]}]}, PLAIN, "cwd has 2 levels, but 3 layers; give one each"),
        (
            {"features": [{"method": "gradient"}]},
            PLAIN | {"train": ["detect"]},
            "features looks at layers 17, 20, 23, but nothing up to them trains in this stage",
        ),
        (
            {"features": [{"method": "gradient"}]},
            PLAIN | {"train": ["detector.23", "detect"]},
            r"nothing up to layers \[17, 20\] trains",
        ),
        (
            {"features": [{"method": "fitnets", "layers": [4, 6]}]},
            PLAIN | {"train": ["detector.neck", "detect"]},
            "features looks at layers 4, 6, but nothing up to them trains in this stage",
        ),
    ],
)
def test_what_can_not_work_is_refused_before_training(
    options: dict[str, Any], stage: dict[str, Any], message: str, weights: str, data: DataConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        distilled(weights, data, tmp_path / "run", stage=stage, **options)


@pytest.mark.parametrize(
    ("term", "tasks", "message"),
    [
        ("masks", {"segment": {"prototypes": 4, "channels": 8}}, "has no segment branch to teach masks with, only det"),
        ("keypoints", {"keypoint": {"points": 5}}, "knows 2 points, the student 5"),
    ],
)
def test_what_a_teacher_does_not_know_is_refused_before_training(
    term: str, tasks: dict[str, Any], message: str, tmp_path: Path
) -> None:
    teacher = save_weights(tiny_model(keypoint={}), tmp_path / "teacher.safetensors")
    config = DistillConfig.model_validate({"teachers": [{"weights": str(teacher), "output": {term: 1.0}}]})
    with pytest.raises(ConfigError, match=message):
        make_distiller(config, tiny_model(points=5, **tasks), imgsz=SIZE, device=torch.device("cpu"))


def test_a_teacher_that_went_is_named_where_a_run_is_resumed(
    weights: str, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Path(shutil.copy(weights, tmp_path))
    interrupted_after(1, monkeypatch, weights=str(own), data=data, out=tmp_path / "run")
    own.unlink()
    with pytest.raises(
        CheckpointError, match=r"^teacher .*: no such file .*; put it there, as a resumed run keeps the"
    ):
        train(resume=tmp_path / "run", progress=False)


def test_terms_of_one_name_are_told_apart(weights: str, data: DataConfig, tmp_path: Path) -> None:
    twice = [{"method": "relative", "layers": [17]}, {"method": "relative", "layers": [20]}]
    teachers = {"teachers": [{"weights": weights, "features": twice}, {"weights": weights, "output": {"scaled": 1.0}}]}
    config = TrainConfig(epochs=1, imgsz=SIZE, batch=3, workers=0, device="cpu")
    plan = {"stages": [{"name": "d", "distill": teachers, **PLAIN}]}
    row = train(tiny_model(), data, plan=plan, config=config, out=tmp_path / "run", progress=False).results[-1]
    names = ["distill.relative.teacher", "distill.relative.teacher.2", "distill.scaled"]
    assert [name for name in row if name.startswith("loss/distill.")] == [f"loss/{name}" for name in names]
    assert row["loss/distill"] == pytest.approx(sum(float(row[f"loss/{name}"] or 0) for name in names), rel=1e-4)


def test_gradient_pairs_the_heads_layers_beside_terms_on_deeper_ones(
    weights: str, data: DataConfig, tmp_path: Path
) -> None:
    terms = [{"method": "relative", "layers": [4, 6, 9]}, {"method": "gradient"}]
    options: dict[str, Any] = {"features": terms, "cache": True, "folder": str(tmp_path / "lessons"), "epochs": 1}
    found = []
    for place in ("asked", "cached"):  # what comes from the disk comes in another order
        found.append(distilled(weights, data, tmp_path / place, **options).results[-1]["loss/distill.gradient"])
    alone = distilled(weights, data, tmp_path / "alone", features=[terms[1]], epochs=1)
    assert alone.results[-1]["loss/distill.gradient"] == pytest.approx(found[0], rel=0.05)
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_gradients_need_a_teacher_with_a_head_of_its_own(weights: str, data: DataConfig, tmp_path: Path) -> None:
    folder = tmp_path / "lessons"
    options = {"features": [{"method": "fitnets"}], "cache": True, "folder": str(folder), "epochs": 1}
    distilled(weights, data, tmp_path / "first", **options)
    with pytest.raises(ConfigError, match="gradient pushes the labels through the teacher's own head"):
        distilled(str(folder), data, tmp_path / "second", features=[{"method": "gradient"}])


@pytest.mark.parametrize("name", sorted(path.stem for path in (shipped_configs() / "plans").glob("distill-*.yaml")))
def test_shipped_plans_name_teachers(name: str) -> None:
    stages = read_plan(name).stages
    assert all(stage.distill is not None and stage.distill.teachers for stage in stages)


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        ({"teachers": []}, "distill.teachers: List should have at least 1 item"),
        ({"teachers": [{"weights": "t.pt"}]}, "this teacher teaches nothing"),
        ({"teachers": [{"weights": "t.pt", "output": {"klm": 1}}]}, "Input should be 'mse', 'kl', 'soft'"),
        (
            {"teachers": [{"weights": "t.pt", "features": [{"method": "gradient", "layers": [17]}]}]},
            "gradient is computed at what the branches take: layers: neck",
        ),
        (
            {"teachers": [{"weights": "t.pt", "features": [{"method": "gradient"}], "pool": 2}]},
            r"pool: gradient \(of per-level, too\) needs whole maps",
        ),
        ({"teachers": [{"weights": "t.pt", "features": "per-level", "pool": 2}]}, "needs whole maps"),
        ({"teachers": [{"weights": "t.pt", "output": {"kl": 1}, "pool": 2}]}, "pool is of feature maps"),
        ({"teachers": [{"weights": "t.pt", "features": [{"method": "cwd"}], "pool": 0}]}, "greater than"),
    ],
)
def test_a_plan_that_says_nothing_useful_is_refused(distill: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_plan({"stages": [{"name": "d", "distill": distill}]})


@pytest.mark.parametrize(
    ("nothing", "message"),
    [
        ({"layers": []}, "layers names none: name some"),
        ({"layers": {}}, "layers names none: name some"),
        ({"levels": [0, 0, 0]}, "levels: no layer weighs anything"),
    ],
)
def test_a_loss_that_compares_nothing_is_refused(nothing: dict[str, Any], message: str) -> None:
    distill = {"teachers": [{"weights": "t.pt", "features": [{"method": "cwd", **nothing}]}]}
    with pytest.raises(ConfigError, match=message):
        read_plan({"stages": [{"name": "d", "distill": distill}]})


def test_what_an_adapter_gives_in_place_of_a_layer_is_taught_as_that_layer(weights: str) -> None:
    torch.manual_seed(0)
    graph = yaml.safe_load((shipped_configs() / "yolov5n.yaml").read_text())
    graph |= {"width_multiple": 0.05, "depth_multiple": 0.1}
    student = build(
        {"extractor": {"name": "timm/mobilenetv2_035", "weights": "none"}, "detector": {"graph": graph}},
        names={0: "square", 1: "disc"},
    )
    term = {"method": "relative", "layers": [4, 6, 9]}
    config = DistillConfig.model_validate({"teachers": [{"weights": weights, "features": [term]}]})
    distiller = make_distiller(config, student, imgsz=SIZE, device=torch.device("cpu"))
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    with distiller.watching(drawn(images)) as seen:
        outputs = student(images.float() / 255)
    nothing = Targets(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    found = distiller(student, outputs, seen, nothing)["distill.relative"]
    lesson = distiller.courses[0].opened.lessons.ask(drawn(images))()
    wanted = {8: lesson.features[4], 16: lesson.features[6], 32: lesson.features[9]}
    errors = level_errors(outputs.adapted, wanted)
    assert float(found.detach()) == pytest.approx(float(torch.stack(list(errors.values())).sum().detach()), rel=1e-4)
    found.backward()
    assert student.adapters is not None
    assert all(parameter.grad is not None for parameter in student.adapters.parameters())
