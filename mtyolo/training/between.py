"""What happens between steps: before a run, at the start of a stage, after an epoch, at the end of a stage; and the
tools that all of it shares with the loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

from accelerate import Accelerator

from mtyolo.config.plan import PlanConfig
from mtyolo.config.training import TrainConfig
from mtyolo.data.records import Split
from mtyolo.distill.teachers import Own
from mtyolo.drawing import draw_batch, save_image
from mtyolo.errors import DataError, StoreError
from mtyolo.features.reader import FeatureStore
from mtyolo.model import Model
from mtyolo.original_layers import alignment_teacher
from mtyolo.training.batches.stored import matching_batches, takes_images
from mtyolo.training.fresh import teaches_classes, unknown_in_words
from mtyolo.training.objectives.alignment import match_adapters
from mtyolo.training.objectives.distilling import teacher_reports
from mtyolo.training.objectives.held_out import as_fitness, held_out_errors, is_judged_by_error, may_be_held_out
from mtyolo.training.processes import copy_from_first, mean_over_processes, precision_warning
from mtyolo.training.records.checkpoints import Position
from mtyolo.training.records.judging import Judge, judged
from mtyolo.training.records.progress import Display
from mtyolo.training.records.rows import Means, Row
from mtyolo.training.stages import Stage, learns
from mtyolo.training.starting import start_branches
from mtyolo.training.state import RunState
from mtyolo.training.stopping import StopRequest
from mtyolo.training.work import StageWork

MATCHED_BATCHES = 4
"""From which the statistics of adapters are matched at the start."""


@dataclass(frozen=True)
class Tools:
    """What stays the same through a run."""

    config: TrainConfig
    plan: PlanConfig
    split: Split
    val_split: Split | None
    store: FeatureStore | None
    judge: Judge | None
    accelerator: Accelerator
    display: Display
    stop: StopRequest
    own: Own | None = None
    """Classes by name, and trust, as `load` takes them, for teachers' models."""


def begin_run(state: RunState, stages: list[Stage], tools: Tools) -> None:
    """What was there before: the plan in words, the untouched network's metrics, a state to resume from."""
    run, config = state.run, tools.config
    if warning := precision_warning(config):
        tools.display.say(warning)
    for line in unknown_in_words(state.model, stages, tools.split, config.gains):
        tools.display.say(line)
    if lacking := [task for task in tools.plan.task_weights if task not in state.model.tasks]:
        tools.display.say(f"task_weights: no effect for {', '.join(lacking)}, which the model has no branch for")
    for stage in stages:
        tools.display.say(stage.describe(state.model, stored=tools.store is not None))
    epochs, fixed = sum(stage.epochs for stage in stages), all(stage.config.epochs for stage in stages)
    if epochs != config.epochs and not fixed:
        tools.display.say(f"{epochs} epochs in all, not {config.epochs}: as the plan has them, at least one a stage")
    row = judged(tools.judge, state.model, tools.val_split, tools.store, config)
    by_error = only_aligns(tools.plan) and may_be_held_out(tools.val_split, tools.store)
    if config.patience and row.get("fitness") is None and not by_error:
        tools.display.say(f"patience {config.patience}: nothing is validated, so no stage ends early")
    if tools.accelerator.is_main_process:
        if row:
            start: Row = {"epoch": 0, "stage": ""}
            run.add(start | row)
            # Without metrics of which the validation images show nothing: they have no value.
            found = [f"{name} {value:.3f}" for name, value in row.items() if isinstance(value, float)]
            tools.display.say(f"before training: {', '.join(found) or 'the validation images show nothing to find'}")
        state.save(None)


def begin_stage(state: RunState, stage: Stage, work: StageWork, tools: Tools) -> None:
    """Adapters are matched where the model asks for it, fresh branches told what labels say on average; the average
    stands still where the stage is frozen."""
    if state.run.results and is_judged_by_error(state.run.results[-1]):
        state.run.best_fitness = -math.inf  # stages measure other errors; the best of the last one is what is wanted
    if stage.number == 0 and state.model.config.adapters.match_statistics and state.model.adapters is not None:
        match(state.model, work, tools)
        state.configure(state.model.config.with_known_adapters())
        state.ema.settle(state.model, state.model.state_dict())
    if learns(stage, "keypoint"):
        split = tools.split
        state.configure(state.model.config.with_keypoints_of(split.keypoint_classes, split.sigmas, split.skeleton))
    if teaches_classes(stage, state.model, tools.config.gains):
        state.configure(state.model.config.with_unknown(()))
    state.ema.settle(state.model, start_branches(state.model, stage, tools.split))
    state.ema.settle(state.model, [name for name in state.model.state_dict() if not stage.trains(name)])
    say_teachers(state, work, tools)
    picture = state.run.out / "train_batch.jpg"
    shown = stage.config.objective == "tasks" and tools.store is None and not picture.exists()
    if shown and tools.accelerator.is_main_process:
        save_image(draw_batch(next(work.loader.epoch(0)), state.model.names, tools.split.skeleton), picture)


def only_aligns(plan: PlanConfig) -> bool:
    return all(stage.objective == "align" for stage in plan.stages)


def say_teachers(state: RunState, work: StageWork, tools: Tools) -> None:
    """How good a stage's teachers are, beside the student as it is now."""
    if work.distiller is None or tools.judge is None or not work.distiller.config.check:
        return
    if tools.val_split is None:
        tools.display.say("teachers are not checked: the data has no val split")
        return
    student = state.ema.model
    for line in teacher_reports(work.distiller, tools.judge, student, tools.val_split, tools.config, tools.store):
        tools.display.say(line)


def match(model: Model, work: StageWork, tools: Tools) -> None:
    """Adapters start with the replaced layers' statistics, in all processes those of the first."""
    assert model.adapters is not None
    device, store = tools.accelerator.device, tools.store
    teacher = None if store else alignment_teacher(model).to(device)
    batches = matching_batches(store, model, tools.split, tools.config) if store else work.loader.epoch(0)
    match_adapters(model, teacher, (batch.to(device) for batch in islice(batches, MATCHED_BATCHES)))
    copy_from_first(model.adapters)


def end_epoch(state: RunState, stage: Stage, work: StageWork, tools: Tools) -> None:
    """Validate the average, write what people read, save; the state points to the next epoch."""
    config, position = tools.config, state.position
    position.epoch, position.batch = position.epoch + 1, 0
    row: Row = {"epoch": stage.first_epoch + position.epoch, "stage": stage.name}
    row |= mean_over_processes(state.means.means())
    state.means = Means()
    work.balancer.end_epoch()
    if not tools.accelerator.is_main_process:
        return
    if position.epoch % config.val_every == 0 or position.epoch == stage.epochs:
        row |= judged(tools.judge, state.ema.model, tools.val_split, tools.store, config)
        row |= held_out_errors(work.objective, state.ema.model, tools.val_split, tools.store, config)
        row |= as_fitness(row) if only_aligns(tools.plan) else {}
    if work.distiller is not None:
        work.distiller.end_epoch(row.get("fitness"))
    row |= {"lr": max(group["lr"] for group in work.optimizer.param_groups), "skipped": work.guard.skipped}
    state.run.add(row)
    known = {name: value for name, value in row.items() if value is not None}  # not every tracker takes None
    tools.accelerator.log(known, step=stage.first_epoch + position.epoch)
    state.run.keep_weights(state.model, state.ema.model, row)
    state.save(work)
    tools.display.epoch_ends(row)


def end_stage(state: RunState, stage: Stage, tools: Tools) -> None:
    """Draw truth beside prediction; the state points to the next stage."""
    state.position = Position(stage=stage.number + 1)
    if not tools.accelerator.is_main_process:
        return
    draw_comparison(state, stage, tools)
    state.save(None)


def draw_comparison(state: RunState, stage: Stage, tools: Tools) -> None:
    """Truth beside prediction, from a store, too; a photo that is gone meanwhile costs no more than the picture."""
    shown = tools.val_split is not None and (tools.store is not None or takes_images(state.model))
    if tools.judge is None or tools.judge.compare is None or not shown:
        return
    stored = {} if tools.store is None else {"features": tools.store.directory}
    try:
        picture = tools.judge.compare(state.ema.model, tools.val_split, size=tools.config.imgsz, **stored)
    except (DataError, StoreError) as error:
        tools.display.say(f"val_{stage.name}.jpg is not drawn: {error}")
    else:
        save_image(picture, state.run.out / f"val_{stage.name}.jpg")
