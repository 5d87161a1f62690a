"""What moves while a run goes on, and how it is saved and brought back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from mtyolo.assembly import assemble
from mtyolo.checkpoint import EXTRACTOR, config_as_written
from mtyolo.config.model import ModelConfig
from mtyolo.config.training import TrainConfig
from mtyolo.distill.handover import Learned
from mtyolo.errors import CheckpointError, ConfigError
from mtyolo.extractors import GivenFeatures
from mtyolo.features.standin import stand_in
from mtyolo.model import Model
from mtyolo.training.ema import Ema
from mtyolo.training.processes import copy_from_first
from mtyolo.training.records.checkpoints import STATE, Position, random_states, save_state, set_random_states
from mtyolo.training.records.rows import Means
from mtyolo.training.records.run import Run
from mtyolo.training.settings import Settings
from mtyolo.training.stopping import Interrupted
from mtyolo.training.work import StageWork


@dataclass
class RunState:
    """A run at one moment."""

    model: Model
    ema: Ema
    run: Run
    settings: Settings
    given: dict[str, str] = field(default_factory=dict)
    """Fingerprints of what was there at the start: by name of splits, by path of teachers' files."""
    position: Position = field(default_factory=Position)
    means: Means = field(default_factory=Means)
    """Of the losses of the epoch that is going on."""
    learned: Learned = field(default_factory=dict)
    """What teachers' terms have learned in the stages before this one."""

    def configure(self, config: ModelConfig) -> None:
        """From now on this describes the model: in this run, resumed, and in its weights."""
        self.model.config = self.ema.model.config = config
        self.settings = replace(self.settings, model=self.model.config.model_dump_json(exclude_none=True))

    @property
    def has_begun(self) -> bool:
        """False as long as its assistants are trained, and nothing of its own."""
        return bool(self.run.results) or self.position != Position()

    def save(self, work: StageWork | None = None) -> None:
        """Write everything to the run's folder. work: None between stages."""
        content = {
            "settings": asdict(self.settings),
            "given": self.given,
            "model": self.model.state_dict(),
            "extractor": extractor.identity if isinstance(extractor := self.model.extractor, GivenFeatures) else {},
            "ema": self.ema.state_dict(),
            "run": self.run.state_dict(),
            "position": self.position.as_dict(),
            "means": self.means.as_dict(),
            "learned": self.learned,
            "work": None if work is None else work.state_dict(),
            "random": random_states(),
        }
        save_state(self.run.out / STATE, content)

    def load(self, saved: dict[str, Any]) -> None:
        """Bring back all but the stage's work."""
        parts: list[tuple[nn.Module, dict[str, Tensor]]] = [(self.model, saved["model"]), (self.ema, saved["ema"])]
        for module, tensors in parts:  # before any is filled: a model that was given stays as it is
            _refuse_others(self.run.out, module, tensors)
        for module, tensors in parts:
            module.load_state_dict(tensors)
        self.run.load_state_dict(saved["run"])
        self.position = Position(**saved["position"])
        self.means = Means(saved["means"])
        self.learned = saved.get("learned", {})  # earlier versions threw it away
        set_random_states(saved["random"])

    def resume_work(self, work: StageWork, saved: dict[str, Any]) -> None:
        """Bring back the work of a stage that was left in the middle."""
        if saved["work"] is not None:
            try:
                work.load_state_dict(saved["work"])
            except (ValueError, RuntimeError, KeyError) as error:
                raise CheckpointError(
                    f"{self.run.out}: this stage was begun with other parts: with labels for other tasks, or by "
                    f"another version of mtyolo ({' '.join(str(error).split())}); put the labels back, or begin anew "
                    f"with --weights {self.run.last}"
                ) from None
            set_random_states(saved["random"])


def _refuse_others(folder: Path, module: nn.Module, saved: dict[str, Tensor]) -> None:
    """Raises CheckpointError where these are not a module's tensors."""
    ours, theirs = ({name: tuple(tensor.shape) for name, tensor in s.items()} for s in (module.state_dict(), saved))
    names = dict.fromkeys([*ours, *theirs])  # in the model's order
    if different := [name for name in names if ours.get(name) != theirs.get(name)]:
        raise CheckpointError(
            f"{folder}: was written by a run of another model, or by another version of mtyolo: {len(different)} "
            f"tensors differ, first {different[0]}; beside resume= leave the model out, which the folder knows"
        )


def interrupted(state: RunState, signal_number: int | None) -> Interrupted:
    """Says how to go on with this run."""
    config = state.model.config
    return Interrupted(state.run.out, signal_number, imports=config.imports, by_name=config.by_name)


def saved_model(settings: Settings, saved: dict[str, Any] | None, **own: Any) -> Model:
    """The model of a run that is resumed, still without its weights. own: classes by name, and trust, as for
    `assemble`."""
    config = ModelConfig.model_validate_json(settings.model)
    if saved is not None:
        config = config_as_written(config, saved["model"])
    inside = saved is None or any(name.startswith(EXTRACTOR) for name in saved["model"])
    given = stand_in(settings.features) if settings.features and not inside else None
    model = assemble(config, weights=False, stand_in=given, **own)
    if saved is not None and isinstance(model.extractor, GivenFeatures):
        model.extractor.made_by(saved.get("extractor", {}))  # earlier versions did not know it
    return model


def make_state(
    model: Model, settings: Settings, folder: Path, device: torch.device, saved: dict[str, Any] | None
) -> RunState:
    """At its start, or as it was saved: the model on its device, alike in all processes, and the random states."""
    config = TrainConfig.model_validate_json(settings.config)
    if model.dtype != torch.float32:
        raise ConfigError(
            f"model: its weights are {model.dtype}, and float32 is what trains: give model.float(); the config's "
            "precision, bf16 or fp16, computes in half"
        )
    set_seed(config.seed)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if saved is None:
        copy_from_first(model)  # what was left to chance
    state = RunState(model, Ema(model, config.ema_decay), Run(folder), settings)
    if saved:
        state.load(saved)
    return state
