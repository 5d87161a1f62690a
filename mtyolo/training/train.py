"""Training: stages, epochs, steps. What varies is an object that is made before the loop; the loop is this file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from mtyolo.assembly import Registry
from mtyolo.config.plan import PlanConfig
from mtyolo.config.training import TrainConfig
from mtyolo.distill.handover import hand_over, learned_by
from mtyolo.memory import kept_memory
from mtyolo.model import Model
from mtyolo.modes import as_before
from mtyolo.training.assistants import Assistants
from mtyolo.training.batches.counted import left_out, lengths
from mtyolo.training.batches.loading import reading
from mtyolo.training.batches.splits import Data, open_splits, say_change, say_problems, with_lessons
from mtyolo.training.batches.stored import open_store
from mtyolo.training.batches.unlabelled import refuse_unlabelled
from mtyolo.training.between import Tools, begin_run, begin_stage, end_epoch, end_stage, say_teachers
from mtyolo.training.moved import with_data_at
from mtyolo.training.objectives.distilling import refuse_unjudged, teachers_files
from mtyolo.training.optimizer import set_rates
from mtyolo.training.processes import (
    any_process,
    from_first,
    is_first,
    leave_processes,
    make_accelerator,
    own_device,
)
from mtyolo.training.records.checkpoints import random_states, read_state, set_random_states
from mtyolo.training.records.judging import Judge
from mtyolo.training.records.progress import Display
from mtyolo.training.records.run import Run, alone_in, run_folder
from mtyolo.training.records.told import told
from mtyolo.training.settings import Settings, settle
from mtyolo.training.stages import Stage, freeze, plan_stages, what_is_left
from mtyolo.training.state import RunState, interrupted, make_state, saved_model
from mtyolo.training.step import training_step
from mtyolo.training.stopping import stop_on_signals
from mtyolo.training.work import StageWork, make_work

SAVE_SECONDS = 600.0
"""Inside an epoch the state is saved this often."""


def train(
    model: Model | None = None,
    data: Data | None = None,
    *,
    plan: str | Path | Mapping[str, Any] | PlanConfig | None = None,
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    features: str | Path | None = None,
    judge: Judge | None = None,
    progress: bool = True,
    extractors: Registry | None = None,
    adapters: Registry | None = None,
    trust: bool = False,
) -> Run:
    """Train a model by a plan. It is trained in place; what to use are the weights of the run, which are averages:
    `mtyolo.load(run.best)`. What was frozen for a stage wants gradients again afterwards.

    plan: a file, the name of one that ships with mtyolo, or its content. out: the run's folder.
    resume: a run's folder; goes on where it was left, with the model, data, plan and configuration of its start.
    features: a store to take features from in place of images. Beside `resume`, data and features say where these are
    now. judge: how to validate; without, nothing is. extractors, adapters: your own classes by name, for a resumed
    run's model, and for teachers. trust: it may import `package.module:Class` that it names.
    Raises ConfigError, DataError, StoreError, CheckpointError; Interrupted after Ctrl-C or SIGTERM, when all is saved.
    """
    with as_before(model), kept_memory():
        own = {"extractors": extractors, "adapters": adapters, "trust": trust}
        run = train_in_group(model, data, plan, config, out, resume, features, judge, progress=progress, own=own)
    leave_processes()
    return run


def train_in_group(
    model: Model | None,
    data: Data | None,
    plan: str | Path | Mapping[str, Any] | PlanConfig | None,
    config: TrainConfig | None,
    out: str | Path | None,
    resume: str | Path | None,
    features: str | Path | None = None,
    judge: Judge | None = None,
    *,
    progress: bool,
    own: Mapping[str, Any],
    followed: bool = False,
    perform: Callable[[RunState, list[Stage], Tools, dict[str, Any] | None], None] | None = None,
) -> Run:
    """The same among processes that stay together. own: classes by name, and trust, as `assemble` takes them. followed:
    by another training, as an assistant's is by the student's; then a signal interrupts at the end, too. perform: what
    is done when all is there, by default `run_stages`.
    """
    saved = read_state(resume) if resume is not None else None
    if saved and resume is not None:
        settings = with_data_at(Settings.of_run(saved, str(resume), features), data, resume)
    else:
        settings = settle(model, data, plan, config, features, own)
    config, plan = settings.parsed()
    if model is None:
        model = saved_model(settings, saved, **own)
    opened = data or settings.opened_data()
    whole = open_splits(opened, model)
    splits = with_lessons(whole, model)
    labelled = splits[0].taught
    stages = plan_stages(plan, config, model, labelled)
    refuse_unlabelled(stages[saved["position"]["stage"] if saved else 0 :], model, splits[0], opened)
    if not saved:
        refuse_unjudged(plan, model, judge, splits[1])
    device = own_device(config.device)
    with ExitStack() as held:
        folder = from_first(lambda: held.enter_context(alone_in(run_folder(out, resume), new=resume is None)))
        if saved and resume is not None:
            saved = read_state(resume)  # once more: another process may have gone on until it gave the folder away
        shown = progress and is_first()
        state = make_state(model, settings, folder, device, saved)
        state.given = {split.name: split.fingerprint() for split in whole if split is not None} | teachers_files(plan)
        store = open_store(place, model, splits, config, stages, device) if (place := settings.features) else None
        say = Display(shown).say
        if not followed:
            say_problems(splits, say)
        say_change(saved, state.given, say)
        if plan.assistants:
            learn = partial(train_in_group, data=opened, judge=judge, progress=progress, own=own, followed=True)
            assistants = Assistants(state, whole[0], opened, config, learn, say, own)
            plan = assistants.teach(plan, stored=store is not None, resumed=saved is not None)
            stages = plan_stages(plan, config, model, labelled)
        accelerator = make_accelerator(config, folder, told(state.settings))
        for tracker in accelerator.trackers:
            held.callback(tracker.finish)  # however the run ends
        stop = held.enter_context(stop_on_signals())
        display = held.enter_context(Display(shown, lengths(stages, model, splits[0])))
        tools = Tools(config, plan, *splits, store, judge, accelerator, display, stop, own)
        (perform or run_stages)(state, stages, tools, saved if saved and state.has_begun else None)
        if followed and any_process([stop.asked], device)[0]:
            raise interrupted(state, stop.signal_number)
    return state.run


def run_stages(state: RunState, stages: list[Stage], tools: Tools, saved: dict[str, Any] | None) -> None:
    """The whole of training, from the state's position to the end of the last stage."""
    if saved is None:
        try_stages(state, stages, tools)
    state.configure(state.model.config.with_size(tools.config.imgsz))
    if saved is None:
        begin_run(state, stages, tools)
    else:
        tools.display.say(what_is_left(state.position, stages))
        if state.position.stage == len(stages) and tools.accelerator.is_main_process:
            state.save(None)  # no stage will: where data and store are now
    for stage in stages[state.position.stage :]:
        work = work_of(stage, state, tools)
        for line in left_out(stage, state.model, tools.split):
            tools.display.say(line)
        if saved and saved["work"]:
            state.resume_work(work, saved)
        else:
            hand_over(state.learned, work.distiller, state.run.out)
            begin_stage(state, stage, work, tools)
        saved = None
        while state.position.epoch < stage.epochs and not ends_early(state, stage, tools):
            with reading():
                train_epoch(state, stage, work, tools)
                end_epoch(state, stage, work, tools)
        work.guard.end_stage()
        state.learned |= learned_by(work.distiller, state.run.out)
        end_stage(state, stage, tools)
    if tools.accelerator.is_main_process:
        state.run.plot()


def work_of(stage: Stage, state: RunState, tools: Tools) -> StageWork:
    """A stage's, with the model as the stage freezes it."""
    freeze(state.model, stage)
    return make_work(
        stage,
        state.model,
        tools.split,
        plan=tools.plan,
        config=tools.config,
        store=tools.store,
        accelerator=tools.accelerator,
        own=tools.own,
    )


def try_stages(state: RunState, stages: list[Stage], tools: Tools) -> None:
    """Make all that each stage needs and forget it: what is wrong with the last is said before the first is trained,
    and how good later teachers are.

    But for teachers that the run itself makes on the way.
    """
    random, known = random_states(), set[str]()
    for stage in with_teachers_there(stages, state.run.out):
        new = {teacher.weights for teacher in stage.teachers} - known
        work = work_of(stage, state, tools)
        if new and stage.number:  # the first stage says it when it begins, which is now
            say_teachers(state, work, tools)
        known |= new
    set_random_states(random)


def with_teachers_there(stages: list[Stage], folder: Path) -> Iterator[Stage]:
    """Stages without those whose teachers the run in this folder makes on the way."""
    made = {folder.absolute()}
    for stage in stages:
        places = [Path(teacher.weights).absolute() for teacher in stage.teachers]
        if not any(made.intersection([path, *path.parents]) for path in places):
            yield stage
        made |= {Path(teacher.folder).absolute() for teacher in stage.teachers if teacher.folder}


def ends_early(state: RunState, stage: Stage, tools: Tools) -> bool:
    """Has the stage gone on for too long without a better fitness? Only the first process knows what was validated."""
    stale = state.run.is_stale(stage, tools.config.patience)
    return any_process([stale], tools.accelerator.device)[0]


def train_epoch(state: RunState, stage: Stage, work: StageWork, tools: Tools) -> None:
    """Batches of an epoch from the state's position on."""
    freeze(state.model, stage)
    epoch, position, saved_at = state.position.epoch, state.position, time.monotonic()
    if work.distiller is not None:
        work.distiller.begin_epoch(epoch, stage.epochs)
    tools.display.epoch_begins(f"{stage.name} {epoch + 1}/{stage.epochs}", len(work.loader), position.batch)
    for batch in work.loader.epoch(stage.first_epoch + epoch, skip=position.batch):
        set_rates(work.optimizer, work.step_of(position), work.steps, work.warmup, work.rate, tools.config)
        stopping = training_step(state, work, batch.to(tools.accelerator.device), tools)
        position.batch += 1
        tools.display.batch_done()
        due = time.monotonic() - saved_at > SAVE_SECONDS
        if (stopping or due) and work.between_steps(position):
            if tools.accelerator.is_main_process:
                state.save(work)
            saved_at = time.monotonic()
            if stopping:
                tools.accelerator.wait_for_everyone()  # a launcher ends all processes with the first
                raise interrupted(state, tools.stop.signal_number)
