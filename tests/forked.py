"""Functions in processes of their own, which start in milliseconds: a server that they are forked from has imported
what takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterable
from multiprocessing.process import BaseProcess
from typing import Any

import torch

FORKSERVER = multiprocessing.get_context("forkserver")
IMPORTED = ["pytest", "mtyolo.api", "mtyolo.training.train", "mtyolo.features.writer"]


def start(function: Callable[..., object], *arguments: object, **environment: str) -> BaseProcess:
    """function: of a module, so that the process finds it, too. Its sums are in one order."""
    FORKSERVER.set_forkserver_preload(IMPORTED)
    process = FORKSERVER.Process(target=_run, args=(function, arguments, environment), daemon=True)
    process.start()
    return process


def start_pair(function: Callable[..., object], *arguments: object) -> list[BaseProcess]:
    """Two that find each other, told so as `torchrun` tells them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    return [start(function, *arguments, RANK=rank, LOCAL_RANK=rank, **group) for rank in ("0", "1")]


def exit_codes(processes: Iterable[BaseProcess], seconds: float = 240) -> list[int | None]:
    """Of each, when it has ended; None of one that has not by then."""
    codes = []
    for process in processes:
        process.join(seconds)
        codes.append(process.exitcode)
    return codes


def _run(function: Callable[..., Any], arguments: tuple[object, ...], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)
