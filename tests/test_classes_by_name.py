"""Classes of one's own that Python gives by name: wherever a file is opened, and when a run goes on."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

import mtyolo
from mtyolo.adapters import ADAPTERS, ConvAdapter
from mtyolo.config.model import KNOWN, ModelConfig, shipped_configs
from mtyolo.data.shapes import make_shapes
from mtyolo.extractors import EXTRACTORS
from mtyolo.training.records.checkpoints import read_state
from mtyolo.training.records.run import Run
from mtyolo.training.stopping import Interrupted

QUICK = {"epochs": 1, "imgsz": 64, "batch": 4, "workers": 0, "device": "cpu"}


class Colours(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.levels = tuple(mtyolo.Level(stride, 3) for stride in (8, 16, 32))

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        return {level.stride: F.avg_pool2d(images, level.stride) for level in self.levels}


OWN: dict[str, Any] = {"extractors": {"mine": Colours}, "adapters": {"ours": ConvAdapter}}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("shapes"), train=4, val=2, size=64)


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    graph = yaml.safe_load((shipped_configs() / "yolov5n.yaml").read_text())
    graph |= {"width_multiple": 0.05, "depth_multiple": 0.1}
    config = {"extractor": {"name": "mine"}, "adapters": {"type": "ours"}, "detector": {"graph": graph}}
    (folder / "model.yaml").write_text(yaml.safe_dump(config))
    return mtyolo.train(folder / "model.yaml", shapes, config=QUICK, out=folder / "run", progress=False, **OWN)


def test_weights_are_judged_and_looked_with(run: Run, shapes: Path) -> None:
    grey = np.full((64, 64, 3), 90, np.uint8)
    assert mtyolo.validate(run.best, shapes, **OWN).tasks.keys() == {"detect"}
    assert len(mtyolo.predict(run.best, grey, **OWN)) == 1
    assert mtyolo.open_model(run.best, data=shapes, **OWN).tasks == ("detect",)
    with pytest.raises(mtyolo.ConfigError, match=r"unknown extractor 'mine'.*extractors=\{name: class\} from Python"):
        mtyolo.predict(run.best, grey)


def test_a_run_goes_on(run: Run, shapes: Path) -> None:
    assert read_state(run.out)["position"]["stage"] == 1
    assert mtyolo.train(None, shapes, resume=run.out, progress=False, **OWN).results == run.results
    assert mtyolo.train(resume=run.out, progress=False, **OWN).results == run.results


def test_an_interruption_names_the_call_that_goes_on(run: Run, tmp_path: Path) -> None:
    config = mtyolo.load(run.best, **OWN).config
    said = str(Interrupted(tmp_path, signal.SIGINT, imports=config.imports, by_name=config.by_name))
    call = f"mtyolo.train(resume='{tmp_path}', extractors={{'mine': …}}, adapters={{'ours': …}})"
    assert said == f"SIGINT: saved; go on in Python, with {call}"


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({}, {}),
        ({"extractor": {"name": "timm/resnet18"}, "adapters": {"type": "fusion"}}, {}),
        ({"extractor": {"name": "a.b:C"}, "adapters": {"type": "a.b:D"}}, {}),
        ({"extractor": {"name": "mine"}}, {"extractors": "mine"}),
    ],
    ids=str,
)
def test_what_only_python_can_give_is_known(config: dict[str, Any], named: dict[str, str]) -> None:
    assert ModelConfig.model_validate(config | {"detector": {"graph": "yolov5n.yaml"}}).by_name == named


def test_what_a_file_can_name_by_itself_is_what_there_is() -> None:
    assert set(KNOWN["extractors"]) == EXTRACTORS.keys()
    assert set(KNOWN["adapters"]) == ADAPTERS.keys()


@pytest.mark.parametrize("hard", [0, 1])
def test_a_teacher_may_have_them(hard: int, run: Run, shapes: Path, tmp_path: Path) -> None:
    """Also where the student takes its classes' names from it."""
    graph = yaml.safe_load((shipped_configs() / "yolov5n.yaml").read_text())
    graph |= {"width_multiple": 0.05, "depth_multiple": 0.1, "nc": 4}
    (tmp_path / "student.yaml").write_text(yaml.safe_dump({"detector": {"graph": graph}}))
    distill = {"teachers": [{"weights": str(run.best), "output": {"scaled": 1.0}}], "hard": hard}
    plan = {"stages": [{"name": "taught", "augment": False, "distill": distill}]}
    data = shapes if hard else shapes.parent / "images" / "train"

    def taught(**own: Any) -> Run:
        return mtyolo.train(
            tmp_path / "student.yaml", data, plan=plan, config=QUICK, out=tmp_path / "run", progress=False, **own
        )

    with pytest.raises(mtyolo.ConfigError, match=r"unknown extractor 'mine'"):
        taught()
    assert taught(**OWN).results[-1]["loss/distill"]
    assert mtyolo.load(tmp_path / "run" / "last.safetensors").names == mtyolo.load(run.best, **OWN).names


@pytest.mark.parametrize("wrong", [5, ["model.yaml"], nn.Identity()], ids=["number", "list", "module"])
def test_what_is_no_model_is_not_trained(wrong: Any, shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(mtyolo.ConfigError, match="model: expected a model, a file, or the content of one, got "):
        mtyolo.train(wrong, shapes, config=QUICK, out=tmp_path / "run")


def test_an_assistant_may_have_them(run: Run, shapes: Path, tmp_path: Path) -> None:
    graph = yaml.safe_load((shipped_configs() / "yolov5n.yaml").read_text())
    graph |= {"width_multiple": 0.05, "depth_multiple": 0.1}
    own = {"extractor": {"name": "mine"}, "adapters": {"type": "ours"}, "detector": {"graph": graph}}
    lesson = {"teachers": [{"weights": "medium", "output": {"scaled": 1.0}}]}
    plan = {
        "assistants": [{"name": "medium", "model": own, "epochs": 1, "stages": [{"name": "alone"}]}],
        "stages": [{"name": "taught", "augment": False, "distill": lesson}],
    }
    student = {"detector": {"graph": graph}}
    done = mtyolo.train(student, shapes, plan=plan, config=QUICK, out=tmp_path / "run", progress=False, **OWN)
    assert done.results[-1]["loss/distill"]


class Halved(Colours):
    def forward(self, images: Tensor) -> dict[int, Tensor]:
        return {stride: features.half() for stride, features in super().forward(images).items()}


def test_features_may_come_in_half_precision() -> None:
    graph = yaml.safe_load((shipped_configs() / "yolov5n.yaml").read_text())
    graph |= {"width_multiple": 0.05, "depth_multiple": 0.1}
    config = {"extractor": {"name": "half"}, "detector": {"graph": graph}}
    model = mtyolo.build(config, extractors={"half": Halved})
    images = torch.rand(1, 3, 64, 64)
    assert model(images).detect[0].dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(images).detect[0].isfinite().all()
    for kind in (torch.float64, torch.float16):  # of which the extractor makes what it likes
        assert model(images.to(kind)).detect[0].dtype == torch.float32
