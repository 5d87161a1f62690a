"""Several processes do together what one does."""

from __future__ import annotations

import csv
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from forked import exit_codes, start, start_pair
from tiny_networks import THREE_TASKS, tiny_graph
from torch import Tensor, distributed, nn

from mtyolo.api import build
from mtyolo.config.training import LossGains, TrainConfig
from mtyolo.data.dataset import Dataset
from mtyolo.data.loader import collate
from mtyolo.data.split import load_split
from mtyolo.errors import ConfigError
from mtyolo.model import Model
from mtyolo.training.objectives.tasks import TasksObjective
from mtyolo.training.processes import (
    copy_from_first,
    images_each,
    make_accelerator,
    mean_over_processes,
    over_processes,
    precision_warning,
    sum_gradients,
)
from mtyolo.training.train import train

MakeModel = Callable[[], Model]


def train_whole(data: Path, out: Path, epochs: int, norms: str) -> None:
    """Alone or as one of two, each of which would start with branches of its own. At a rate at which gradients that are
    not shared are seen in the losses."""
    torch.manual_seed(int(os.environ.get("RANK", 0)))
    model = build({"detector": {"graph": tiny_graph()}, "tasks": THREE_TASKS}, data=data)
    config = TrainConfig(epochs=epochs, imgsz=64, batch=4, workers=0, device="cpu", warmup_epochs=0.5, lr=0.1)
    stages = [{"name": "frozen", "freeze": ["detector"], "norms": norms}, {"name": "joint", "norms": norms}]
    train(model, data, plan={"balance": "uncertainty", "stages": stages}, config=config, out=out, progress=False)


def losses(out: Path) -> list[dict[str, float]]:
    with (out / "results.csv").open() as file:
        return [{key: float(row[key]) for key in row if key.startswith("loss/")} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_with_the_whole_batch(shapes: Path, tmp_path: Path) -> None:
    """BatchNorm statistics are frozen: on a CPU each process has its own."""
    train_whole(shapes, tmp_path / "one", 4, "frozen")
    assert exit_codes(start_pair(train_whole, shapes, tmp_path / "two", 4, "frozen")) == [0, 0]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 4
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, abs=1e-4)


def gradient(data: Path, images: Sequence[int]) -> Tensor:
    """Of the losses of these training images; among processes, where each has other images, of all of them."""
    torch.manual_seed(0)
    model = build({"detector": {"graph": tiny_graph()}, "tasks": THREE_TASKS}, data=data).eval()
    dataset = Dataset(load_split(data, "train"), 64, None, 0)
    batch = collate([dataset[number] for number in images])
    losses = TasksObjective(model.tasks, LossGains())(model, batch)
    share = images_each(len(batch.indices), torch.device("cpu"))
    (torch.stack(list(losses.tasks.values())).sum() * share).backward()
    sum_gradients(list(model.parameters()))
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def save_gradient_of_a_part(data: Path, path: Path) -> None:
    """In each of two processes."""
    distributed.init_process_group("gloo")
    found = gradient(data, range(5)[distributed.get_rank() :: 2])
    if distributed.get_rank() == 0:
        torch.save(found, path)


@pytest.mark.slow
def test_unequal_parts_of_a_batch_give_the_gradient_of_the_whole(shapes: Path, tmp_path: Path) -> None:
    """Five images: three for one, two for the other."""
    whole = gradient(shapes, range(5))
    assert exit_codes(start_pair(save_gradient_of_a_part, shapes, tmp_path / "parts.pt")) == [0, 0]
    parts = torch.load(tmp_path / "parts.pt", weights_only=True)
    assert float(torch.linalg.vector_norm(parts - whole) / torch.linalg.vector_norm(whole)) < 1e-4


def take_what_the_first_has(place: Path) -> None:
    """In each of two processes."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    torch.manual_seed(rank)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    module(torch.randn(2, 3, 8, 8))
    if rank == 0:
        torch.save(module.state_dict(), place / "first.pt")
    copy_from_first(module)
    assert over_processes(6 + 2 * rank) == 12, "what fits the least of them, in all"
    means = mean_over_processes({"loss/detect": 1.0 + rank} | ({} if rank == 0 else {"weight/keypoint": 5.0}))
    assert means == {"loss/detect": 1.5, "weight/keypoint": 5.0}
    torch.save(module.state_dict(), place / f"{rank}.pt")
    nowhere, there, everywhere = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    there.grad = torch.ones(2) if rank else None
    everywhere.grad = torch.full((2,), 1.0 + rank)
    sum_gradients([nowhere, there, everywhere])
    assert nowhere.grad is None, "a zero would decay"
    assert there.grad is not None
    assert there.grad.tolist() == [1.0, 1.0]
    assert everywhere.grad.tolist() == [3.0, 3.0]
    distributed.destroy_process_group()


@pytest.mark.slow
def test_every_process_gets_what_the_first_has(tmp_path: Path) -> None:
    assert exit_codes(start_pair(take_what_the_first_has, tmp_path)) == [0, 0]
    first, *copies = [torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("first", "0", "1")]
    for copy in copies:
        assert all(torch.equal(first[name], copy[name]) for name in first)


def begin_or_go_on(data: Path, out: Path) -> None:
    """In a process that may be killed."""
    if (out / "state.pt").exists():
        train(resume=out, progress=False)
    else:
        train_whole(data, out, 4, "train")


def weights_in(out: Path) -> dict[str, Tensor]:
    return torch.load(out / "state.pt", weights_only=True)["model"]  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_in_the_same_weights(shapes: Path, tmp_path: Path) -> None:
    """SIGKILL leaves no time to save; MTYOLO_TEST_KILLS says how often (default 3)."""
    begun = time.perf_counter()
    begin_or_go_on(shapes, tmp_path / "whole")
    longest, expected = time.perf_counter() - begun, weights_in(tmp_path / "whole")
    out, chance, kills = tmp_path / "killed", random.Random(0), 0
    while kills < int(os.environ.get("MTYOLO_TEST_KILLS", "3")):
        process = start(begin_or_go_on, shapes, out)
        process.join(chance.uniform(0, longest))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode == 0:  # it was faster: once more
            shutil.rmtree(out)
        else:
            kills += 1
    assert exit_codes([start(begin_or_go_on, shapes, out)]) == [0]
    found = weights_in(out)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [path.name for path in out.glob(".*")] == [".lock"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trackers": ["aim"]}, "trackers: aim is not installed; pip install aim"),
        ({"precision": "fp16"}, "precision: fp16 needs a GPU"),
        ({"device": "quantum"}, "device quantum: can not be used here"),
    ],
)
def test_what_this_machine_lacks_is_said(
    options: dict[str, Any], message: str, make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(make_model(), shapes, config=config.model_copy(update=options), out=tmp_path, progress=False)


def test_bf16_and_accumulated_steps_train(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options = config.model_copy(update={"epochs": 1, "precision": "bf16", "accumulate": 2})
    run = train(model, shapes, plan="all-at-once", config=options, out=tmp_path, progress=False)
    assert all(math.isfinite(value) for name, value in run.results[-1].items() if name.startswith("loss/"))
    assert not torch.equal(before["graph.layers.0.conv.weight"], model.state_dict()["graph.layers.0.conv.weight"])
    assert model.state_dict()["graph.layers.0.conv.weight"].dtype == torch.float32
    epochs = torch.load(run.out / "state.pt", weights_only=True)["ema"]["n_averaged"]
    assert int(epochs) == 2, "three batches are two steps"


def test_a_second_run_in_a_process_may_take_another_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_accelerator(TrainConfig(device="cpu"), tmp_path)
    monkeypatch.setattr("mtyolo.training.processes.find_device", lambda word: torch.device("meta"))
    monkeypatch.setattr(PartialState, "default_device", torch.device("meta"))
    assert make_accelerator(TrainConfig(device="meta"), tmp_path).device.type == "meta"
    assert over_processes(7) == 7


@pytest.mark.parametrize(
    ("precision", "capability", "warns"),
    [("bf16", "AVX2", True), ("bf16", "AVX512", False), ("auto", "AVX2", False), ("fp32", "AVX2", False)],
)
def test_bf16_on_a_cpu_without_instructions_for_it_is_warned_of(
    precision: str, capability: str, warns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    warning = precision_warning(TrainConfig.model_validate({"precision": precision, "device": "cpu"}))
    assert (warning is not None) == warns
    assert warning is None or "slower than fp32" in warning
