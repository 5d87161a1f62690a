"""Devices, precision and several processes: what accelerate knows, and gradients summed over processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import distributed, nn

from mtyolo.config.training import TrainConfig
from mtyolo.errors import ConfigError


def make_accelerator(config: TrainConfig) -> Accelerator:
    """For the device and precision asked for; several processes where a launcher started them."""
    if config.device not in ("auto", "cpu") and not config.device.startswith(("cuda", "mps")):
        raise ConfigError(f"device: {config.device!r} is none of auto, cpu, cuda, cuda:1, mps")
    if config.device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise ConfigError(f"device: {config.device} asked for, but torch finds no CUDA device; use device: cpu")
        torch.cuda.set_device(torch.device(config.device).index or 0)
    # accelerate keeps one precision a process; a second run in the same process may want another.
    AcceleratorState._reset_state()
    on_cpu = config.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    chosen = config.precision
    if chosen == "auto":
        chosen = "bf16" if not on_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    if chosen == "fp16" and on_cpu:
        raise ConfigError("precision: fp16 needs a GPU; use fp32 or bf16 on a CPU")
    return Accelerator(
        mixed_precision="no" if chosen == "fp32" else chosen, cpu=config.device == "cpu", device_placement=False
    )


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Make every process's gradient the sum over processes, in one exchange.

    Not DistributedDataParallel: frozen parts, tasks that are absent from a batch, and balancers that go backward more
    than once each need exceptions there, and none here.
    """
    if processes() == 1:
        return
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in parameters]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    for parameter, values in zip(parameters, flat.split([one.numel() for one in parameters]), strict=True):
        parameter.grad = values.view_as(parameter)


def any_process(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Each flag: is it set in any process?"""
    if processes() == 1:
        return list(flags)
    counts = torch.tensor(flags, dtype=torch.float32, device=device)
    distributed.all_reduce(counts)
    return (counts > 0).tolist()


def mean_over_processes(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Values that every process has under the same names, averaged."""
    if processes() == 1:
        return dict(values)
    means = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    distributed.all_reduce(means)
    return dict(zip(values, (means / processes()).tolist(), strict=True))


def processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
