"""What a stage works with, made from the plan: objective, balancer, optimiser, batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from mtyolo.balance import Balancer, make_balancer
from mtyolo.config.plan import PlanConfig
from mtyolo.config.training import AugmentConfig, TrainConfig
from mtyolo.data.dataset import Dataset
from mtyolo.data.loader import make_loader
from mtyolo.data.records import Split
from mtyolo.distill.objective import Distiller
from mtyolo.distill.teachers import Own
from mtyolo.errors import ConfigError
from mtyolo.features.reader import FeatureStore
from mtyolo.model import Model
from mtyolo.training.batches.counted import counted_images
from mtyolo.training.batches.loading import StageLoader
from mtyolo.training.batches.stored import training_batches
from mtyolo.training.nonfinite import NonFiniteGuard
from mtyolo.training.objectives.alignment import ALIGN, AlignedTasksObjective, make_align, without_labels
from mtyolo.training.objectives.distilling import DISTILL, DistilledObjective, reads_lessons, repeats, stage_distiller
from mtyolo.training.objectives.learned import add_learned, in_groups_of_now
from mtyolo.training.objectives.tasks import Losses, Objective, TasksObjective
from mtyolo.training.optimizer import make_optimizer
from mtyolo.training.processes import copy_from_first
from mtyolo.training.records.checkpoints import Position
from mtyolo.training.stages import Stage, aligns, lr_scales

FIRST_SCALE = 2.0**10
"""Of gradients in half precision. torch's own, 2**16, is too large for sums over a batch: of short runs with teachers,
all six steps were lost while it shrank."""
LARGEST_WARMUP = 1 / 3
"""Of a stage; short stages would otherwise end before they are warm."""


@dataclass
class StageWork:
    """Everything that is made anew for a stage."""

    objective: Objective
    balancer: Balancer
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    loader: StageLoader
    guard: NonFiniteGuard
    parameters: list[nn.Parameter]
    lr: float
    clip_value: float | None
    epochs: int
    accumulate: int
    warmup_epochs: float
    distiller: Distiller | None = None

    @property
    def rate(self) -> float:
        """The stage's learning rate, as far as teachers leave it."""
        rule = self.distiller.rule if self.distiller is not None else None
        return self.lr * (rule.factor if rule is not None else 1.0)

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.loader) // self.accumulate)

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def warmup(self) -> int:
        return round(min(self.warmup_epochs, LARGEST_WARMUP * self.epochs) * self.steps_per_epoch)

    def step_of(self, position: Position) -> int:
        """Number of the optimiser step in the stage that the next batch belongs to."""
        return position.epoch * self.steps_per_epoch + position.batch // self.accumulate

    def gradient_factor(self, losses: Losses, images: float, processes: int) -> float:
        """From a loss per image to its part in the step's gradient, which is a sum over processes and batches; in half
        precision times the scaler's."""
        factor = images if losses.sums_images else 1 / (processes * self.accumulate)
        return factor * self._scale(next(iter(losses.tasks.values())).device)

    def unscale(self, device: torch.device) -> None:
        """Gradients of half precision, back to their size. A process that had none takes part."""
        self._scale(device)
        self.scaler.unscale_(self.optimizer)

    def _scale(self, device: torch.device) -> float:
        # torch's scaler comes to life when it scales, and refuses to unscale before.
        return float(self.scaler.scale(torch.ones((), device=device))) if self.scaler.is_enabled() else 1.0

    def between_steps(self, position: Position) -> bool:
        """Is no gradient waiting for further batches?"""
        return position.batch == 0 or self.ends_step(position.batch - 1)

    def ends_step(self, batch: int) -> bool:
        return (batch + 1) % self.accumulate == 0 or batch + 1 == len(self.loader)

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._stateful().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.distiller is not None:
            learned = list(self.distiller.parameters())
            state = state | {"optimizer": in_groups_of_now(state["optimizer"], self.optimizer, learned)}
        for name, part in self._stateful().items():
            if name in state:  # earlier versions kept fewer
                part.load_state_dict(state[name])

    def _stateful(self) -> dict[str, Any]:
        parts = {"balancer": self.balancer, "optimizer": self.optimizer, "scaler": self.scaler, "guard": self.guard}
        return parts if self.distiller is None else parts | {"distiller": self.distiller.progress}


def make_work(
    stage: Stage,
    model: Model,
    split: Split,
    *,
    plan: PlanConfig,
    config: TrainConfig,
    store: FeatureStore | None,
    accelerator: Accelerator,
    own: Own | None = None,
) -> StageWork:
    """Prepare a stage. The model is frozen as the stage says. own: classes by name, and trust, for teachers' models."""
    alone = stage.config.objective == "align"
    split = without_labels(split) if alone else counted_images(stage, model, split)
    weights = {str(task): weight for task, weight in plan.task_weights.items()}
    distiller = stage_distiller(stage, model, split, config, accelerator, stored=store is not None, own=own)
    learned = []
    if distiller is not None:
        copy_from_first(distiller.learned)
        learned = list(distiller.parameters())
    tasks = () if alone else _tasks(stage, model, split)
    objective, losses = _objective(stage, model, tasks, split, config, distiller, store, accelerator)
    if stage.config.weight_decay is not None:
        config = config.model_copy(update={"weight_decay": stage.config.weight_decay})
    optimizer = make_optimizer(model, lr_scales(model, stage), config, stage.config.optimizer or config.optimizer)
    add_learned(optimizer, learned, config.weight_decay)
    return StageWork(
        objective=objective,
        balancer=make_balancer(stage.config.balance or plan.balance, losses, weights),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler(
            accelerator.device.type, init_scale=FIRST_SCALE, enabled=accelerator.mixed_precision == "fp16"
        ),
        loader=_loader(stage, model, split, config, store, accelerator),
        guard=NonFiniteGuard(model, split.records, None if store is None else store.directory),
        parameters=[*(parameter for parameter in model.parameters() if parameter.requires_grad), *learned],
        lr=stage.config.lr or config.lr,
        clip_value=stage.config.clip_value or config.clip_value,
        epochs=stage.epochs,
        accumulate=config.accumulate,
        warmup_epochs=config.warmup_epochs if stage.config.warmup_epochs is None else stage.config.warmup_epochs,
        distiller=distiller,
    )


def _objective(
    stage: Stage,
    model: Model,
    tasks: tuple[str, ...],
    split: Split,
    config: TrainConfig,
    distiller: Distiller | None,
    store: FeatureStore | None,
    accelerator: Accelerator,
) -> tuple[Objective, tuple[str, ...]]:
    """What the stage minimises, and the names of the losses that are balanced."""
    align = None
    if aligns(stage, model):
        align = make_align(model, stage.config.arguments, accelerator.device, stored=store is not None)
    if align is not None and stage.config.objective == "align":
        return align, (ALIGN,)
    objective = TasksObjective(tasks, config.gains, split.sigmas)
    if align is not None:
        return AlignedTasksObjective(objective, align, stage.config.align), (*tasks, ALIGN)
    if distiller is not None:
        return DistilledObjective(objective, distiller, split.records), (*tasks, DISTILL)
    return objective, tasks


def _tasks(stage: Stage, model: Model, split: Split) -> tuple[str, ...]:
    """What the stage learns: wanted, predicted by the model, and labelled."""
    wanted = tuple(stage.config.tasks or model.tasks)
    unknown = next((task for task in wanted if task not in model.tasks), None)
    if unknown is not None:
        raise ConfigError(
            f"plan: stage {stage.name!r}: the model has no task {unknown!r}; it has {', '.join(model.tasks)}"
        )
    return tuple(task for task in wanted if split.count(task))


def _loader(
    stage: Stage,
    model: Model,
    split: Split,
    config: TrainConfig,
    store: FeatureStore | None,
    accelerator: Accelerator,
) -> StageLoader:
    if store is not None:
        loader = training_batches(store, model, stage, split, config)
    else:
        own = stage.config.augment
        augment = own if isinstance(own, AugmentConfig) else config.augment if own else None
        dataset = Dataset(split, config.imgsz, augment, config.seed, keyed=reads_lessons(stage))
        loader = make_loader(dataset, config.batch, shuffle=True, workers=config.workers, seed=config.seed)
    return StageLoader(
        loader,
        config.seed,
        views=stage.config.views,
        repeat=repeats(stage),
        process=accelerator.process_index,
        processes=accelerator.num_processes,
        pin_memory=accelerator.device.type == "cuda",
    )
