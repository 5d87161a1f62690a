"""A step: losses of a batch, their balance, the gradient, and the optimiser's step where it is due."""

from __future__ import annotations

import torch

from mtyolo.structures import Batch
from mtyolo.training.between import Tools
from mtyolo.training.objectives.tasks import Losses
from mtyolo.training.optimizer import clip_gradients
from mtyolo.training.processes import any_process, images_each, sum_gradients
from mtyolo.training.state import RunState
from mtyolo.training.work import StageWork

LEAST_SCALE = 1.0
"""In half precision gradients that are infinite at larger scales are no failure: the scale is being found."""


def training_step(state: RunState, work: StageWork, batch: Batch, tools: Tools) -> bool:
    """Losses, balance, gradient, and the optimiser's step where it is due. Returns: did a signal ask to stop?"""
    work.guard.remember(batch, begins_step=work.between_steps(state.position))
    with tools.accelerator.autocast():
        losses = work.objective(state.model, batch)
    images = images_each(len(batch.indices), tools.accelerator.device)
    finite = bool(sum(losses.tasks.values(), torch.zeros(())).isfinite())
    bad, stopping = any_process([not finite, tools.stop.asked], tools.accelerator.device)
    if bad:
        work.guard.skip(batch, losses.tasks, elsewhere=finite)
    else:
        state.means.add(losses.tasks | losses.components, prefix="loss/")
        state.means.add(backward(work, losses, images, tools), prefix="weight/")
    if work.ends_step(state.position.batch):
        optimiser_step(state, work, batch, tools)
    return stopping


def backward(work: StageWork, losses: Losses, images: float, tools: Tools) -> dict[str, float]:
    """Add the balanced gradient. Returns the tasks' weights."""
    # Without tasks that say nothing in this batch, as keypoints without people: zero would unsettle balancers.
    found = {task: loss for task, loss in losses.tasks.items() if float(loss.detach()) > 0}
    if not found:
        return {}
    factor = work.gradient_factor(losses, images, tools.accelerator.num_processes)
    return work.balancer.backward(found, losses.shared, factor)


def optimiser_step(state: RunState, work: StageWork, batch: Batch, tools: Tools) -> None:
    """Sum over processes, clip, step, average."""
    here = any(parameter.grad is not None for parameter in work.parameters)
    if any_process([here], tools.accelerator.device)[0]:
        sum_gradients(work.parameters)  # first: what is infinite in one process is so in all
        work.unscale(tools.accelerator.device)
        finite = bool(clip_gradients(work.parameters, work.clip_value, tools.config.clip_norm).isfinite())
        if finite or work.scaler.is_enabled():
            work.scaler.step(work.optimizer)  # in half precision it skips by itself, and lowers its scale
            work.scaler.update()
        if finite:
            state.ema.update_parameters(state.model)
            work.guard.accept()
        elif work.scaler.get_scale() <= LEAST_SCALE:  # 1 in single precision
            work.guard.skip_step(batch)
    work.optimizer.zero_grad(set_to_none=True)
