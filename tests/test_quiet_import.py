"""Importing does nothing, and building a model leaves the process as it was. Each claim runs in its own process."""

from __future__ import annotations

import subprocess
import sys

import pytest

REPORT = """
import json, os, sys, tempfile
home = tempfile.mkdtemp()
os.environ["HOME"] = home  # ultralytics would write its settings below it
before = dict(os.environ)
modules = set(sys.modules)
import mtyolo
heavy = {"torch", "torchvision", "timm", "ultralytics", "cv2", "numpy", "pydantic", "typer", "rich"}
assert not heavy & (set(sys.modules) - modules), heavy & set(sys.modules)
assert dict(os.environ) == before
"""

BUILD = """
import logging, random, signal, threading, warnings
import cv2, numpy, torch
# What these libraries do when they are imported is theirs (rich draws a random number, scipy adds a warning filter).
import accelerate, rich.console, supervision, timm, torchjd, torchmetrics.detection
numpy.random.seed(0), random.seed(0)
def state():
    return {
        "environment": {k: v for k, v in os.environ.items()},
        "torch.save": torch.save, "torch.load": torch.load,
        "cv2 threads": cv2.getNumThreads(), "torch threads": torch.get_num_threads(),
        "imread": cv2.imread, "imshow": cv2.imshow,
        "numpy options": str(numpy.get_printoptions()), "torch options": str(vars(torch._tensor_str.PRINT_OPTS)),
        "filters": list(warnings.filters), "root handlers": list(logging.getLogger().handlers),
        "level": logging.getLogger().level, "excepthook": sys.excepthook, "sigint": signal.getsignal(signal.SIGINT),
        "default dtype": torch.get_default_dtype(), "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(), "benchmark": torch.backends.cudnn.benchmark,
        "numpy seed": numpy.random.get_state()[1].tolist(), "random": random.getstate(),
        "directory": os.getcwd(), "stdout": sys.stdout,
    }
was = state()
model = mtyolo.build("yolov5n-multitask.yaml")
with torch.no_grad():
    model.eval()(torch.zeros(1, 3, 64, 64))
now = state()
changed = [name for name in was if was[name] != now[name]]
assert not changed, {name: (str(was[name])[:300], str(now[name])[:300]) for name in changed}
assert "ultralytics" in sys.modules
written = [os.path.join(folder, file) for folder, _, files in os.walk(home) for file in files]
left = [path for path in written if "matplotlib" not in path]  # its list of fonts
assert not left, left
assert threading.active_count() == 1, threading.enumerate()
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_import_loads_nothing_heavy_and_leaves_the_environment() -> None:
    done = run(REPORT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


@pytest.mark.slow
def test_building_a_model_leaves_the_process_as_it_was() -> None:
    done = run(REPORT + BUILD)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""
