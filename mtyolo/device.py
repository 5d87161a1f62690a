"""From a word, on the command line or in Python, to a torch device."""

from __future__ import annotations

import torch

from mtyolo.errors import ConfigError


def find_device(word: str | torch.device) -> torch.device:
    """`auto` is the machine's accelerator, or its CPU. Raises ConfigError for a device that is not there."""
    if word == "auto":
        # A build for CUDA names it as its accelerator on machines that have none, too.
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(word)
        torch.empty(1, device=device)
    # In turn: an unknown word or no driver; a build without CUDA; a backend without kernels; no word. torch has no one
    # error.
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"--device {word}: can not be used here ({reason}); --device auto takes what is there (in Python device=)"
        ) from None
    return device
