"""Signals that batch systems send before a time limit: noted, and heeded between two chunks of work."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

from gold.command import say

STOPPED = 75  # exit code after a signal, EX_TEMPFAIL of sysexits.h: run again to go on


class StopSignals:
    """From now on SIGUSR1 and SIGTERM are noted; a stage asks for them after each chunk."""

    def __init__(self) -> None:
        self.noted: list[int] = []
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self.note)

    def note(self, number: int, frame: Any) -> None:
        self.noted.append(number)
        os.write(2, f"\n{signal.Signals(number).name}: ends after this chunk\n".encode())  # print is not safe in here

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """Processes started in here inherit the mask: SIGUSR1 does not end them."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})

    def stop_if_any(self) -> None:
        """End the stage, with exit code 75, where a signal was noted."""
        if self.noted:
            say(f"stopped by {signal.Signals(self.noted[0]).name}, what is done is saved; run it again to go on")
            raise SystemExit(STOPPED)
