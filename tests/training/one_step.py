"""Single steps of the real loop, without a run around them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from mtyolo.config.plan import read_plan
from mtyolo.config.training import TrainConfig
from mtyolo.data.dataset import Dataset
from mtyolo.data.loader import make_loader
from mtyolo.data.split import load_split
from mtyolo.model import Model
from mtyolo.structures import Batch
from mtyolo.training.between import Tools
from mtyolo.training.ema import Ema
from mtyolo.training.processes import make_accelerator
from mtyolo.training.records.progress import Display
from mtyolo.training.records.rows import Means
from mtyolo.training.records.run import Run
from mtyolo.training.settings import settle
from mtyolo.training.stages import freeze, plan_stages
from mtyolo.training.state import RunState
from mtyolo.training.step import training_step
from mtyolo.training.stopping import StopRequest
from mtyolo.training.work import StageWork, make_work

SIZE = 64


@dataclass
class Steps:
    """A stage that is about to begin."""

    state: RunState
    work: StageWork
    tools: Tools
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    """Of each step that the optimiser made, by parameter name; without those that have none."""

    def step(self, batch: Batch) -> dict[str, float]:
        """Losses and weights of one batch, as the results name them."""
        self.state.means = Means()
        training_step(self.state, self.work, batch.to(self.tools.accelerator.device), self.tools)
        self.state.position.batch += 1
        return self.state.means.means()

    def note(self, optimizer: Optimizer, arguments: Any, options: Any) -> None:
        named = self.state.model.named_parameters()
        self.gradients.append({name: one.grad.clone() for name, one in named if one.grad is not None})


def steps_of(
    model: Model,
    data: Path,
    out: Path,
    *,
    balance: str = "fixed",
    device: str = "cpu",
    precision: str = "fp32",
    accumulate: int = 1,
    **stage: Any,
) -> Steps:
    """The work of a plan's only stage. The model is moved to the device."""
    options: dict[str, Any] = {"device": device, "precision": precision, "accumulate": accumulate}
    config = TrainConfig(epochs=1, imgsz=SIZE, batch=4, workers=0, lr=1e-3, **options)
    model.to(device)
    plan = read_plan({"balance": balance, "stages": [{"name": "one", "augment": False, **stage}]})
    (planned,) = plan_stages(plan, config, model)
    freeze(model, planned)
    accelerator, split = make_accelerator(config, out), load_split(data, "train")
    work = make_work(planned, model, split, plan=plan, config=config, store=None, accelerator=accelerator)
    tools = Tools(config, plan, split, None, None, None, accelerator, Display(False), StopRequest())
    state = RunState(model, Ema(model, 0.9), Run(out), settle(model, data, plan, config, None))
    steps = Steps(state, work, tools)
    work.optimizer.register_step_pre_hook(steps.note)
    return steps


def batches_of(data: Path, size: int = 4) -> list[Batch]:
    """The training images in their order, as they are."""
    dataset = Dataset(load_split(data, "train"), SIZE)
    return list(make_loader(dataset, size, shuffle=False, workers=0, seed=0))
