"""Ctrl-C and SIGTERM end a run at the next step, with everything saved."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from mtyolo.errors import MtyoloError


class Interrupted(MtyoloError):
    """A run that was asked to stop, and did. `exit_code`: 128 + the signal's number, as shells expect."""

    def __init__(
        self, out: Path, signal_number: int | None, *, imports: bool = False, by_name: Mapping[str, str] | None = None
    ) -> None:
        """imports: the run's model names classes to be imported. by_name: those that only Python can give,
        `ModelConfig.by_name`."""
        number = signal.SIGTERM if signal_number is None else signal.Signals(signal_number)
        command = shlex.join(["mtyolo", "train", "--resume", str(out), *(["--trust"] if imports else [])])
        given = [f"{key}={{{name!r}: …}}" for key, name in (by_name or {}).items()]
        call = f"mtyolo.train({', '.join([f'resume={str(out)!r}', *given, *(['trust=True'] if imports else [])])})"
        ways = f"go on in Python, with {call}" if given else f"in Python call {call}, else go on with: {command}"
        super().__init__(f"{number.name}: saved; {ways}")
        self.signal_number = signal_number
        self.exit_code = 128 + number


class StopRequest:
    """Which signal asked the run to stop; None as long as none did in this process."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    @property
    def asked(self) -> bool:
        return self.signal_number is not None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second one acts at once, as it would have before."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        request.signal_number = number
        restore()

    for number in previous:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
