"""The state of a run on disk: everything that a bit-exact continuation needs."""

from __future__ import annotations

import pickle
import random
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtyolo.errors import CheckpointError
from mtyolo.files import replacing

FORMAT = "mtyolo-run/1"
STATE = "state.pt"
PARTS = ("settings", "model", "ema", "run", "position", "means", "random")
"""What a state has in any version."""


@dataclass(slots=True)
class Position:
    """How far a run has come: what is done, counted from 0."""

    stage: int = 0
    epoch: int = 0  # of the stage
    batch: int = 0  # of the epoch

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def save_state(path: Path, content: dict[str, Any]) -> None:
    """At any moment the file is whole, old or new."""
    with replacing(path) as temporary:
        torch.save({"format": FORMAT} | content, temporary)


def read_state(path: Path | str) -> dict[str, Any]:
    """Read what `save_state` wrote, without running anything in it. Raises CheckpointError.

    path: the file, or the run's folder.
    """
    path = Path(path)
    path = path / STATE if path.is_dir() else path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other makes; the format check below speaks for all
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; give --resume the folder of a run ({STATE} is in it)") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, AttributeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch would advise to run what is inside
            reason = "it holds other things than tensors and plain values, or is cut off"
        raise CheckpointError(f"{path}: damaged, or not the state of a run: {reason}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not the state of a run ({FORMAT}); weights alone can not be resumed")
    if lacking := [part for part in PARTS if part not in content]:
        raise CheckpointError(f"{path}: was written by another version of mtyolo: has no {lacking[0]!r}")
    return content


def random_states() -> dict[str, Any]:
    """Of every generator that training may draw from."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if torch.cuda.is_available():
        # The run may have begun on a machine with more devices, or with fewer.
        for device, state in enumerate(states.get("cuda", [])[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)
