"""How long a training would take: some steps of each stage, and of validation, before hours are spent."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from mtyolo.config.plan import PlanConfig, read_plan
from mtyolo.config.training import TrainConfig
from mtyolo.data.split import some_of
from mtyolo.errors import ConfigError
from mtyolo.memory import kept_memory
from mtyolo.model import Model
from mtyolo.training.batches.loading import reading
from mtyolo.training.batches.splits import Data
from mtyolo.training.between import Tools, end_epoch
from mtyolo.training.processes import leave_processes
from mtyolo.training.records.checkpoints import Position
from mtyolo.training.records.judging import Judge, judged
from mtyolo.training.records.progress import Display
from mtyolo.training.stages import Stage
from mtyolo.training.state import RunState
from mtyolo.training.step import training_step
from mtyolo.training.train import train_in_group, with_teachers_there, work_of
from mtyolo.training.work import StageWork

STEPS = 6
VALIDATED = 16
"""Images."""


@dataclass(frozen=True)
class StageTime:
    """parameters: that train. Seconds: `step`, with the reading of its batch; `saving` after each epoch, and
    `validating` after some. None where the stage's teacher is only made on the way."""

    name: str
    epochs: int
    batches: int
    parameters: int
    validations: int
    step: float | None = None
    saving: float = 0.0
    validating: float = 0.0

    @property
    def after_epochs(self) -> float:
        return self.epochs * self.saving + self.validations * self.validating

    @property
    def seconds(self) -> float:
        """The whole stage takes so long."""
        return self.epochs * self.batches * (self.step or 0.0) + self.after_epochs


@dataclass(frozen=True)
class Estimate:
    """memory: most bytes in use, of the device or else of the process."""

    stages: Sequence[StageTime]
    memory: int | None

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)


def rehearse(
    model: Model,
    data: Data,
    *,
    plan: str | Path | PlanConfig | None,
    config: TrainConfig,
    features: str | Path | None,
    judge: Judge,
    own: dict[str, Any],
    out: Path | None = None,
    progress: bool = True,
) -> Estimate:
    """Arguments as of `train`. No run is left, nor anything in `out`: it says where the plan's teachers may come from.
    Teachers with a cache keep what they were asked. The model is not to be used afterwards.

    Raises what training would raise at its start, and ConfigError for a plan with assistants.
    """
    found: list[Estimate] = []

    def perform(state: RunState, stages: list[Stage], tools: Tools, saved: object) -> None:
        there = list(with_teachers_there(stages, out or state.run.out))
        times = [_time(stage, state, tools, config.val_every, tried=stage in there) for stage in stages]
        found.append(Estimate(times, _memory(tools.accelerator.device)))

    if plan is not None and read_plan(plan).assistants:
        raise ConfigError("a dry run does not train assistants, and the plan's stages need them; leave --dry-run out")
    quiet = config.model_copy(update={"trackers": [], "val_every": 1})
    options: dict[str, Any] = {"progress": progress, "own": own, "perform": perform}
    with tempfile.TemporaryDirectory() as folder, kept_memory():
        train_in_group(model, data, plan, quiet, Path(folder) / "run", None, features, judge, **options)
    leave_processes()
    return found[0]


def _time(stage: Stage, state: RunState, tools: Tools, val_every: int, *, tried: bool) -> StageTime:
    parameters = sum(value.numel() for name, value in state.model.named_parameters() if stage.trains(name))
    known = StageTime(stage.name, stage.epochs, 0, parameters, -(-stage.epochs // val_every))
    if not tried:
        return known
    work = work_of(stage, state, tools)
    with reading():
        step = _step(stage, work, state, tools)
        saving, validating = _after_an_epoch(stage, work, state, tools)
    return replace(known, batches=len(work.loader), step=step, saving=saving, validating=validating)


def _step(stage: Stage, work: StageWork, state: RunState, tools: Tools) -> float:
    """Seconds, the second time that the same batches are seen, as in all epochs but the first."""
    steps = min(STEPS, len(work.loader))
    tools.display.say(f"trying {stage.name}: {steps} steps twice, and a part of the validation")
    tools.display.epoch_begins(f"trying {stage.name}", 2 * steps, 0)
    for group in work.optimizer.param_groups:
        group["lr"] = 0.0
    for _ in range(2):
        started = time.perf_counter()
        for batch in islice(work.loader.epoch(stage.first_epoch), steps):
            training_step(state, work, batch.to(tools.accelerator.device), tools)
            tools.display.batch_done()
        _wait(tools.accelerator.device)
    return (time.perf_counter() - started) / steps


def _after_an_epoch(stage: Stage, work: StageWork, state: RunState, tools: Tools) -> tuple[float, float]:
    """Seconds of saving, and of a whole validation, as fast as a part of it goes."""
    whole, few = tools.val_split, tools.val_split and some_of(tools.val_split, VALIDATED)
    quick = replace(tools, val_split=few, display=Display(False, tools.display.lengths))
    for _ in range(2):  # at first, libraries are imported
        started = time.perf_counter()
        judged(tools.judge, state.ema.model, few, tools.store, tools.config)
        _wait(tools.accelerator.device)
        judging = time.perf_counter() - started
        state.position = Position(stage=stage.number)
        end_epoch(state, stage, work, quick)
        together = time.perf_counter() - started
    scale = len(whole) / len(few) if whole and few else 0.0
    return max(0.0, together - 2 * judging), judging * scale


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(ImportError):  # not everywhere
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return None
