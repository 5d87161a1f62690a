"""Two processes end together: early, or on a signal to one of them; what they leave is the first one's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {here!r})
from conftest import tiny_graph
from mtyolo.api import build
from mtyolo.config.training import TrainConfig
from mtyolo.training.judging import Judge
from mtyolo.training.stopping import Interrupted
from mtyolo.training.train import train

class Always:
    fitness = 0.5
    def as_dict(self):
        return {{"fitness": 0.5}}

data, out, epochs, patience = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
model = build({{"detector": {{"graph": tiny_graph()}}}}, data=data)
config = TrainConfig(epochs=epochs, imgsz=64, batch=4, workers=0, device="cpu", patience=patience)
try:
    judge = Judge(lambda *_, **__: Always())
    train(model, data, plan="all-at-once", config=config, out=out, progress=False, judge=judge)
except Interrupted as interrupted:
    sys.exit(interrupted.exit_code)
"""


def start(script: Path, data: Path, out: Path, epochs: int, patience: int) -> list[subprocess.Popen[bytes]]:
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent)))
    shared = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(21000 + os.getpid() % 20000 + epochs),
        "ACCELERATE_USE_CPU": "true",
    }
    call = [sys.executable, str(script), str(data), str(out), str(epochs), str(patience)]
    return [
        subprocess.Popen(call, env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]


@pytest.mark.slow
def test_both_stop_when_the_fitness_stays(shapes: Path, tmp_path: Path) -> None:
    pair = start(tmp_path / "script.py", shapes, tmp_path / "run", epochs=9, patience=2)
    assert [process.wait(timeout=240) for process in pair] == [0, 0]
    results = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["run"]["results"]
    assert [row["epoch"] for row in results] == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_signal_to_one_ends_both_and_the_first_saves(shapes: Path, tmp_path: Path) -> None:
    pair = start(tmp_path / "script.py", shapes, tmp_path / "run", epochs=2000, patience=2000)
    results = tmp_path / "run" / "results.csv"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (results.exists() and len(results.read_text().splitlines()) > 3):
        time.sleep(0.05)
    pair[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=120) for process in pair] == [143, 143]
    saved = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    epochs = [row["epoch"] for row in saved["run"]["results"]]
    assert len(epochs) > 2
    assert epochs == [*range(len(epochs))]
    assert saved["position"]["epoch"] == epochs[-1]
