"""Several processes do together what one does."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState

from mtyolo.config.training import TrainConfig
from mtyolo.errors import ConfigError
from mtyolo.model import Model
from mtyolo.training.processes import make_accelerator, over_processes, precision_warning
from mtyolo.training.train import train

MakeModel = Callable[[], Model]

SCRIPT = """
import os, sys, torch
torch.set_num_threads(1)
from pathlib import Path
sys.path.insert(0, {here!r})
from conftest import tiny_graph
from mtyolo.api import build
from mtyolo.config.training import TrainConfig
from mtyolo.training.processes import precision_warning
from mtyolo.training.train import train
data, out, resume, epochs, norms = sys.argv[1], sys.argv[2], sys.argv[3] == "resume", int(sys.argv[4]), sys.argv[5]
if resume:
    train(resume=out, progress=False)
else:
    torch.manual_seed(int(os.environ.get("RANK", 0)))  # each process would start with branches of its own
    tasks = {{"detect": {{}}, "segment": {{"prototypes": 4, "channels": 8}}, "keypoint": {{}}}}
    model = build({{"detector": {{"graph": tiny_graph()}}, "tasks": tasks}}, data=data)
    config = TrainConfig(epochs=epochs, imgsz=64, batch=4, workers=0, device="cpu", warmup_epochs=0.5)
    stages = [{{"name": "frozen", "freeze": ["detector"], "norms": norms}}, {{"name": "joint", "norms": norms}}]
    train(model, data, plan={{"balance": "uncertainty", "stages": stages}}, config=config, out=out, progress=False)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(here=str(Path(__file__).parent)))
    return path


def command(script: Path, data: Path, out: Path, mode: str, epochs: int, norms: str) -> list[str]:
    return [sys.executable, str(script), str(data), str(out), mode, str(epochs), norms]


def environment(**more: str) -> dict[str, str]:
    repository = Path(__file__).resolve().parents[2]
    paths = [str(repository), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)} | more


def losses(out: Path) -> list[dict[str, float]]:
    with (out / "results.csv").open() as file:
        return [{key: float(row[key]) for key in row if key.startswith("loss/")} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_with_the_whole_batch(script: Path, shapes: Path, tmp_path: Path) -> None:
    """BatchNorm statistics are frozen: on a CPU each process has its own."""
    single = command(script, shapes, tmp_path / "one", "new", 4, "frozen")
    subprocess.run(single, check=True, env=environment())
    port = str(20000 + os.getpid() % 20000)
    pair = [
        subprocess.Popen(
            command(script, shapes, tmp_path / "two", "new", 4, "frozen"),
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
                ACCELERATE_USE_CPU="true",
            ),
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=240) for process in pair] == [0, 0]
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 4
    for alone, together in zip(one, two, strict=True):
        assert together == pytest.approx(alone, abs=1e-4)


GRADIENT = """
import sys, torch
from torch import distributed
torch.set_num_threads(1)
sys.path.insert(0, {here!r})
from conftest import tiny_graph
from mtyolo.api import build
from mtyolo.config.training import LossGains
from mtyolo.data.dataset import Dataset
from mtyolo.data.loader import collate
from mtyolo.data.split import load_split
from mtyolo.training.objectives import TasksObjective
from mtyolo.training.processes import images_each, sum_gradients
place, data, rank, processes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
if processes > 1:
    distributed.init_process_group("gloo", init_method=f"file://{{place}}/meeting", rank=rank, world_size=processes)
torch.manual_seed(0)
tasks = {{"detect": {{}}, "segment": {{"prototypes": 4, "channels": 8}}, "keypoint": {{}}}}
model = build({{"detector": {{"graph": tiny_graph()}}, "tasks": tasks}}, data=data).eval()
images = Dataset(load_split(data, "train"), 64, None, 0)
batch = collate([images[number] for number in range(5)[rank::processes]])
losses = TasksObjective(model.tasks, LossGains())(model, batch)
(torch.stack(list(losses.tasks.values())).sum() * images_each(len(batch.indices), torch.device("cpu"))).backward()
sum_gradients(list(model.parameters()))
found = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
torch.save(found, f"{{place}}/{{rank}}_of_{{processes}}.pt")
"""


@pytest.mark.slow
def test_unequal_parts_of_a_batch_give_the_gradient_of_the_whole(shapes: Path, tmp_path: Path) -> None:
    """Five images: three for one, two for the other."""
    script = GRADIENT.format(here=str(Path(__file__).parent))
    for processes in (1, 2):
        calls = [
            [sys.executable, "-c", script, str(tmp_path), str(shapes), str(rank), str(processes)]
            for rank in range(processes)
        ]
        running = [subprocess.Popen(call, env=environment()) for call in calls]
        assert [process.wait(timeout=120) for process in running] == [0] * processes
    whole, parts = (torch.load(tmp_path / f"0_of_{processes}.pt", weights_only=True) for processes in (1, 2))
    assert float(torch.linalg.vector_norm(parts - whole) / torch.linalg.vector_norm(whole)) < 1e-4


COPYING = """
import sys, torch
from torch import distributed, nn
from mtyolo.training.processes import copy_from_first, mean_over_processes, over_processes, sum_gradients
place, rank = sys.argv[1], int(sys.argv[2])
distributed.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=2)
torch.manual_seed(rank)
module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
module(torch.randn(2, 3, 8, 8))
if rank == 0:
    torch.save(module.state_dict(), f"{place}/first.pt")
copy_from_first(module)
assert over_processes(6 + 2 * rank) == 12, "what fits the least of them, in all"
means = mean_over_processes({"loss/detect": 1.0 + rank} | ({} if rank == 0 else {"weight/keypoint": 5.0}))
assert means == {"loss/detect": 1.5, "weight/keypoint": 5.0}
torch.save(module.state_dict(), f"{place}/{rank}.pt")
nowhere, there, everywhere = (nn.Parameter(torch.zeros(2)) for _ in range(3))
there.grad = torch.ones(2) if rank else None
everywhere.grad = torch.full((2,), 1.0 + rank)
sum_gradients([nowhere, there, everywhere])
assert nowhere.grad is None, "a zero would decay"
assert there.grad.tolist() == [1.0, 1.0] and everywhere.grad.tolist() == [3.0, 3.0]
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_every_process_gets_what_the_first_has(tmp_path: Path) -> None:
    calls = [[sys.executable, "-c", COPYING, str(tmp_path), str(rank)] for rank in range(2)]
    pair = [subprocess.Popen(call, env=environment()) for call in calls]
    assert [process.wait(timeout=120) for process in pair] == [0, 0]
    first, *copies = [torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("first", "0", "1")]
    for copy in copies:
        assert all(torch.equal(first[name], copy[name]) for name in first)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_in_the_same_weights(script: Path, shapes: Path, tmp_path: Path) -> None:
    """SIGKILL leaves no time to save; MTYOLO_TEST_KILLS says how often (default 3)."""
    subprocess.run(command(script, shapes, tmp_path / "whole", "new", 8, "train"), check=True, env=environment())
    expected = torch.load(tmp_path / "whole" / "state.pt", weights_only=True)["model"]
    out, mode = tmp_path / "killed", "new"
    generator = torch.Generator().manual_seed(0)
    for _ in range(int(os.environ.get("MTYOLO_TEST_KILLS", "3"))):
        process = subprocess.Popen(command(script, shapes, out, mode, 8, "train"), env=environment())
        while process.poll() is None and not (out / "state.pt").exists():
            time.sleep(0.01)
        try:
            process.wait(timeout=(0.2 if mode == "new" else 3) + 3 * float(torch.rand((), generator=generator)))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        mode = "resume"
    subprocess.run(command(script, shapes, out, "resume", 8, "train"), check=True, env=environment())
    found = torch.load(out / "state.pt", weights_only=True)["model"]
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
