"""A model knows the size that it was trained at: who judges it or looks with it need not say it again."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mtyolo
from mtyolo.checkpoint import save_weights
from mtyolo.cli.main import main
from mtyolo.config.training import TrainConfig
from mtyolo.errors import ConfigError
from mtyolo.model import Model
from mtyolo.training.records.run import Run

MakeModel = Callable[[], Model]
SIDE = 96
PLAN = {"stages": [{"name": "first", "epochs": 1}, {"name": "second", "epochs": 1}]}


@pytest.fixture(scope="module")
def run(make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    torch.set_num_threads(1)
    smaller = config.model_copy(update={"imgsz": SIDE})
    out = tmp_path_factory.mktemp("run")
    return mtyolo.train(make_model(), shapes, plan=PLAN, config=smaller, out=out, progress=False)


@contextlib.contextmanager
def sides_seen(model: Model) -> Any:
    """What is given to the model meanwhile, in pixels."""
    seen: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-1]))
    try:
        yield seen
    finally:
        handle.remove()


def test_weights_remember_it_and_whoever_uses_them_takes_it(run: Run, shapes: Path) -> None:
    model = mtyolo.load(run.best)
    picture = next((shapes.parent / "val").iterdir())
    with sides_seen(model) as seen:
        mtyolo.validate(model, shapes)
        mtyolo.predict(model, picture)
        mtyolo.validate(model, shapes, size=64)
        mtyolo.predict(model, picture, size=64)
    assert seen == [SIDE, SIDE, 64, 64]


def test_training_goes_on_at_it(run: Run, shapes: Path, tmp_path: Path) -> None:
    options = {"epochs": 1, "batch": 8, "workers": 0, "device": "cpu"}
    for size, config in ((SIDE, options), (64, options | {"imgsz": 64})):
        model, out = mtyolo.load(run.best), tmp_path / str(size)
        with sides_seen(model) as seen:
            again = mtyolo.train(model, shapes, plan="all-at-once", config=config, out=out, progress=False)
        assert set(seen) == {size}
        assert mtyolo.load(again.last).usual_size == size


def test_a_plan_that_is_refused_leaves_no_size(make_model: MakeModel, shapes: Path, tmp_path: Path) -> None:
    model, config = make_model(), TrainConfig(epochs=1, imgsz=SIDE, workers=0, device="cpu")
    plan = {"stages": [{"name": "one", "lr_scale": {"nekc": 0.1}}]}
    with pytest.raises(ConfigError, match="nekc"):
        mtyolo.train(model, shapes, plan=plan, config=config, out=tmp_path, progress=False)
    assert model.config.imgsz is None


def test_commands_take_it(run: Run, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for number, size in enumerate(([], ["--imgsz", str(SIDE)])):
        options = [*size, "--json", str(tmp_path / f"{number}.json")]
        assert main(["val", "-m", str(run.best), "-d", str(shapes), *options]) == 0
        found.append(json.loads((tmp_path / f"{number}.json").read_text())["fitness"])
    assert found[0] == found[1]
    assert main(["show", str(run.best)]) == 0
    assert f"{SIDE}x{SIDE} pixels" in capsys.readouterr().out


def test_models_that_do_not_know_it_take_the_usual_one(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    assert model.usual_size == 640
    assert mtyolo.load(save_weights(model, tmp_path / "earlier.safetensors")).usual_size == 640


def test_a_model_file_with_earlier_weights_takes_theirs(run: Run, make_model: MakeModel) -> None:
    config = make_model().config
    assert mtyolo.build(config, weights=run.best).usual_size == SIDE
    assert mtyolo.build(config.with_size(64), weights=run.best).usual_size == 64


def test_a_run_that_an_earlier_version_began_goes_on_and_notes_it(
    run: Run, make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    """Its state, as of before the second stage, says nothing of a size."""
    smaller = config.model_copy(update={"imgsz": SIDE})
    first = {"stages": PLAN["stages"][:1]}
    begun = mtyolo.train(make_model(), shapes, plan=first, config=smaller, out=tmp_path, progress=False)
    state = torch.load(begun.out / "state.pt", weights_only=True)
    model = json.loads(state["settings"]["model"])
    assert model.pop("imgsz") == SIDE
    plan = json.loads(state["settings"]["plan"])
    whole = torch.load(run.out / "state.pt", weights_only=True)["settings"]["plan"]
    assert plan["stages"] == json.loads(whole)["stages"][:1]
    state["settings"] |= {"model": json.dumps(model), "plan": whole}
    torch.save(state, begun.out / "state.pt")
    again = mtyolo.train(resume=begun.out, progress=False)
    assert mtyolo.load(again.last).usual_size == SIDE
