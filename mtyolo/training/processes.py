"""Devices, precision and several processes: what accelerate knows, and gradients summed over processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import parse_flag_from_env
from torch import distributed, nn

from mtyolo.config.training import TrainConfig
from mtyolo.device import find_device
from mtyolo.errors import ConfigError

Value = TypeVar("Value")

LONGEST_WAIT = timedelta(hours=24)
"""The others wait while the first process validates, and torch would give up after ten minutes on GPUs."""


def make_accelerator(
    config: TrainConfig, out: Path, told: Mapping[str, str | int | float | bool] | None = None
) -> Accelerator:
    """For the device and precision asked for; several processes where a launcher started them.

    out: where trackers that write files put them. told: what trackers keep of the run's configuration. Who calls this
    finishes the trackers.
    """
    missing = next((name for name in config.trackers if find_spec(name) is None), None)
    if missing:
        raise ConfigError(f"trackers: {missing} is not installed; pip install {missing}, or leave it out")
    device = find_device(config.device)
    chosen = config.precision
    if chosen == "auto":
        chosen = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if chosen == "fp16" and device.type == "cpu":
        raise ConfigError("precision: fp16 needs a GPU; use fp32 or bf16 on a CPU")
    # accelerate keeps one precision and device a process; a second run in the same process may want others.
    AcceleratorState._reset_state()
    own_device(config.device)
    accelerator = Accelerator(
        mixed_precision="no" if chosen == "fp32" else chosen,
        cpu=device.type == "cpu",
        device_placement=False,
        log_with=list(config.trackers) or None,
        project_dir=out,
    )
    if config.trackers:
        accelerator.init_trackers("mtyolo", dict(told or {}))
    return accelerator


def own_device(word: str) -> torch.device:
    """This process's device, of those that a word from the command line means; joins the others that a launcher
    started."""
    device = find_device(word)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    if processes() == 1:
        PartialState._reset_state()
    cpu = device.type == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
    state = PartialState(cpu=cpu, timeout=LONGEST_WAIT)
    if state.device.type == "cuda" and state.device.index is not None:
        torch.cuda.set_device(state.device)
    return state.device


def is_first() -> bool:
    """To be asked after `own_device`."""
    return bool(PartialState().is_main_process)


def leave_processes() -> None:
    """At the end of all training: the others need not wait for this process any more."""
    PartialState().destroy_process_group()


def from_first(make: Callable[[], Value]) -> Value:
    """What the first process makes, in all of them."""
    if processes() == 1:
        return make()
    made: list[Any] = [make() if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(made, src=0)
    found: Value = made[0]
    return found


def over_processes(batch: int) -> int:
    """From a batch that fits each process to the one that they share: what fits the least of them, in all."""
    return min(_from_all(batch)) * processes()


SLOW_BF16 = ("NO AVX", "AVX2")
"""What torch calls CPUs that compute bfloat16 in software: measured on AVX2, a step took ten times as long as in fp32.
Of those with AVX512 some do, too; torch has no public word for that."""


def precision_warning(config: TrainConfig) -> str | None:
    """What to tell someone whose CPU makes a choice slow that is fast elsewhere."""
    capability = torch.backends.cpu.get_cpu_capability()
    if config.precision != "bf16" or find_device(config.device).type != "cpu" or capability not in SLOW_BF16:
        return None
    return (
        f"warning: precision bf16: this CPU ({capability}) has no instructions for it, so it is several times slower "
        "than fp32, which is what auto takes"
    )


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Make every process's gradient the sum over processes, in one exchange.

    Not DistributedDataParallel: frozen parts, tasks that are absent from a batch, and balancers that go backward more
    than once each need exceptions there, and none here.
    """
    if processes() == 1:
        return
    there = any_process([one.grad is not None for one in parameters], parameters[0].device)
    # What no process has a gradient for stays without one, as in a single process: a zero would decay and drift.
    found = [one for one, somewhere in zip(parameters, there, strict=True) if somewhere]
    flat = torch.cat([(torch.zeros_like(one) if one.grad is None else one.grad).reshape(-1) for one in found])
    distributed.all_reduce(flat)
    for parameter, values in zip(found, flat.split([one.numel() for one in found]), strict=True):
        parameter.grad = values.view_as(parameter)


def copy_from_first(module: nn.Module) -> None:
    """Give every process the first one's parameters and statistics."""
    if processes() > 1:
        for tensor in module.state_dict().values():
            values = tensor.contiguous()  # weights of convolutions may lie channels last
            distributed.broadcast(values, src=0)
            tensor.copy_(values)


def any_process(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Each flag: is it set in any process?"""
    if processes() == 1:
        return list(flags)
    counts = torch.tensor(flags, dtype=torch.float32, device=device)
    distributed.all_reduce(counts)
    return (counts > 0).tolist()


def images_each(images: int, device: torch.device) -> float:
    """Images of a step, this process's being `images`, on average over processes.

    What losses of labels are multiplied by: they are means over the objects of all processes, and a process with more
    images than another would count more. To be called equally often in every process.
    """
    if processes() == 1:
        return float(images)
    total = torch.tensor(float(images), device=device)
    distributed.all_reduce(total)
    return float(total) / processes()


def mean_over_processes(values: Mapping[str, float]) -> dict[str, float]:
    """Averaged over the processes that have them: a rare task may have been absent in one."""
    found = _from_all(dict(values))
    names = dict.fromkeys(name for one in found for name in one)
    return {name: fmean(one[name] for one in found if name in one) for name in names}


def _from_all(value: Value) -> list[Value]:
    """What each process has."""
    if processes() == 1:
        return [value]
    found = [value] * processes()
    distributed.all_gather_object(found, value)
    return found


def processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
