"""A plan's stages for a given model: how long each takes, what trains in it, and freezing what does not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mtyolo.checkpoint import EXTRACTOR
from mtyolo.config.distill import TeacherConfig
from mtyolo.config.plan import PlanConfig, StageConfig
from mtyolo.config.training import TrainConfig
from mtyolo.errors import ConfigError
from mtyolo.model import PARTS, Model
from mtyolo.training.records.checkpoints import Position


@dataclass(frozen=True)
class Stage:
    """One stage of a run. Its own epochs count from 0; `first_epoch` is how many the stages before it take."""

    config: StageConfig
    number: int
    epochs: int
    first_epoch: int
    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    """trained, frozen: prefixes in `state_dict`; the longest that fits a name decides."""
    still: tuple[str, ...] = ()
    """Prefixes of the modules whose BatchNorm layers keep their statistics."""

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def teachers(self) -> list[TeacherConfig]:
        return self.config.distill.teachers if self.config.distill else []

    def trains(self, name: str) -> bool:
        """Does the tensor or module of this name train?"""
        return _reach(self.trained, name) > _reach(self.frozen, name)

    def describe(self, model: nn.Module, *, stored: bool = False) -> str:
        """One line: name, objective, epochs, how much of the model trains. stored: do its features come from a store?
        Then an extractor that is there all the same does not run, and does not count."""
        runs = [one for one in model.named_parameters() if not (stored and one[0].startswith(EXTRACTOR))]
        sizes = [(parameter.numel(), self.trains(name)) for name, parameter in runs]
        trained, total = sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
        parts = "all" if self.config.train == "all" else ", ".join(self.config.train)
        without = f" without {', '.join(self.config.freeze)}" if self.config.freeze else ""
        return (
            f"stage {self.name}: objective {self.config.objective}, {self.epochs} epochs, trains {parts}{without} "
            f"({trained:,} of {total:,} parameters)"
        )


def plan_stages(
    plan: PlanConfig, config: TrainConfig, model: Model, labelled: Sequence[str] | None = None
) -> list[Stage]:
    """Stages with their epochs and parts. labelled: tasks that the training data has labels for; None where it is not
    known. Raises ConfigError for a part that no model has, or for a stage that trains nothing."""
    stages: list[Stage] = []
    for number, (stage, epochs) in enumerate(zip(plan.stages, stage_epochs(plan, config), strict=True)):
        trained = ("",) if stage.train == "all" else tuple(_prefixes(model, stage.train, stage, "train"))
        kept = [*stage.freeze, *_without_lessons(model, stage, labelled)]
        frozen = tuple(_prefixes(model, kept, stage, "freeze"))
        first_epoch, still = sum(earlier.epochs for earlier in stages), _still(model, stage)
        resolved = Stage(stage, number, epochs, first_epoch, trained, frozen, still)
        if not any(resolved.trains(name) for name, _ in model.named_parameters()):
            parts = "nothing" if stage.train in ("all", []) else f"none of {', '.join(stage.train)}"
            raise ConfigError(
                f"plan: stage {stage.name!r} trains nothing: the model has {parts} that is not frozen and belongs to "
                "tasks that count and have labels; name other parts under train or freeze, or take another plan"
            )
        stages.append(resolved)
    return stages


def what_is_left(position: Position, stages: list[Stage]) -> str:
    """For people: what a resumed run does next."""
    if position.stage == len(stages):
        return "nothing is left to do: the run had come to its end"
    stage = stages[position.stage]
    if position.epoch >= stage.epochs:  # stopped after the stage's last epoch, before its picture was drawn
        return what_is_left(Position(stage=position.stage + 1), stages)
    inside = f", after {position.batch} of its batches" if position.batch else ""
    return f"goes on with epoch {stage.first_epoch + position.epoch + 1}, stage {stage.name}{inside}"


def stage_epochs(plan: PlanConfig, config: TrainConfig) -> list[int]:
    """Epochs of each stage: as given, else by share of the run's, else what is left in equal parts; at least 1."""
    given = [stage.epochs for stage in plan.stages]
    if config.freeze_epochs is not None:
        given[0] = config.freeze_epochs
        _refuse_beyond(config.freeze_epochs, given, config.epochs)
    reached = 0.0
    for number, stage in enumerate(plan.stages):
        if given[number] is None and stage.share is not None:
            # From where the share before it ended: each rounded by itself, two halves of 7 would be 8.
            begun, reached = round(reached), reached + stage.share * config.epochs
            given[number] = max(1, round(reached) - begun)
    open_stages = [number for number, epochs in enumerate(given) if epochs is None]
    left = config.epochs - sum(epochs or 0 for epochs in given)
    for position, number in enumerate(open_stages):
        # Whole epochs: the later stages get the remainder.
        given[number] = max(1, (left + position) // len(open_stages))
    return [epochs or 1 for epochs in given]


def _refuse_beyond(first: int, given: Sequence[int | None], epochs: int) -> None:
    """The first stage's, where nothing of the run's would be left for what has no epochs of its own."""
    others = given[1:].count(None)
    if first + others > epochs and (others or len(given) == 1):
        rest = f" and leave none to {others} more stage{'s' * (others > 1)}" if others and first <= epochs else ""
        raise ConfigError(
            f"freeze_epochs: {first} are the first stage's{rest}, but the run has {epochs}; give --freeze-epochs less, "
            "or --epochs more (in Python, freeze_epochs and epochs of the configuration)"
        )


def freeze(model: nn.Module, stage: Stage) -> None:
    """Training mode and gradients for what the stage trains; evaluation mode and none for all else.

    To be called after every `model.train()` or validation: frozen is derived, never stored.
    """
    for name, module in model.named_modules():
        training = stage.trains(name)
        module.training = training and not (isinstance(module, _BatchNorm) and _reach(stage.still, name) >= 0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stage.trains(name))


def aligns(stage: Stage, model: Model) -> bool:
    """Does the stage align adapters, alone or beside labels? Beside them, a model without adapters has nothing to."""
    return stage.config.objective == "align" or (stage.config.align > 0 and model.adapters is not None)


def learns(stage: Stage, task: str) -> bool:
    """Does the stage train this branch, and on its labels?"""
    counts = stage.config.tasks is None or task in stage.config.tasks
    read = stage.config.objective == "tasks" and (stage.config.distill is None or stage.config.distill.hard > 0)
    return read and counts and stage.trains(f"branches.{task}.layers")


def lr_scales(model: Model, stage: Stage) -> dict[str, float]:
    """Factor of the learning rate of every trained parameter, by name."""
    # `detector` holds the detect branch: where both are named, in whatever order, the inner one is for the branch.
    parts = sorted(stage.config.lr_scale, key=lambda part: part != "detector")
    factors = {
        prefix: stage.config.lr_scale[part]
        for part in parts
        for prefix in _prefixes(model, [part], stage.config, "lr_scale")
    }
    scales = {}
    for name, _ in model.named_parameters():
        if stage.trains(name):
            inside = [prefix for prefix in factors if _covers(prefix, name)]
            scales[name] = factors[max(inside, key=len)] if inside else 1.0
    return scales


def _without_lessons(model: Model, stage: StageConfig, labelled: Sequence[str] | None) -> list[str]:
    """Branches without a loss in this stage: frozen, or their norms would drift with nothing to correct the weights."""
    wanted = stage.tasks or model.tasks
    taught = [task for task in wanted if stage.objective != "tasks" or labelled is None or task in labelled]
    if stage.distill is not None:
        taught = [*(taught if stage.distill.hard else ()), *stage.distill.tasks]
    elif not taught:
        taught = list(wanted)  # the stage says so itself, later and better
    return [task for task in model.tasks if task not in taught]


def _still(model: Model, stage: StageConfig) -> tuple[str, ...]:
    if isinstance(stage.norms, list):
        return tuple(_prefixes(model, stage.norms, stage, "norms"))
    return ("",) if stage.norms == "frozen" else ()


def _prefixes(model: Model, parts: Iterable[str], stage: StageConfig, key: str) -> list[str]:
    """Of the parts that a stage's key names. One that exists elsewhere but not in this model (adapters without an
    extractor, say) is left out. So is a layer to freeze that is not built, as features come in its place."""
    unbuilt = _unbuilt(model) if key == "freeze" else set()
    prefixes: list[str] = []
    for part in (part for part in parts if part not in unbuilt):
        try:
            prefixes += [prefix for prefix, _ in model.part(part)]
        except ConfigError as error:
            if part not in PARTS:
                raise ConfigError(f"plan: stage {stage.name!r}: {key}: {error}") from None
    return prefixes


def _unbuilt(model: Model) -> set[str]:
    numbers = (str(layer.number) for layer in model.graph.spec.layers)
    return {f"detector.{number}" for number in numbers if number not in model.graph.layers}


def _reach(prefixes: Sequence[str], name: str) -> int:
    """Length of the longest prefix that covers a name; -1 for none."""
    return max((len(prefix) for prefix in prefixes if _covers(prefix, name)), default=-1)


def _covers(prefix: str, name: str) -> bool:
    return not prefix or name == prefix or name.startswith(f"{prefix}.")
