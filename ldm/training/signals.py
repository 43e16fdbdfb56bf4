"""Ctrl-C and SIGTERM wait for the end of a training step, so that what is saved is the state of one step."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)


@contextlib.contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Yields the list of signals that came: the loop looks there after each step, saves, and ends.

    At the end of the `with` the first one does what it would have done at once, as a second one does.
    """
    came: list[int] = []
    before: dict[int, Any] = {}
    owner = os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            restore()
            came.append(number)
            log.warning("the state is saved after this step; once more ends at once, without saving")
        elif number == signal.SIGTERM:  # a loader process, which leaves Ctrl-C to its owner
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # as under nohup
                before[number] = signal.signal(number, note)
    try:
        yield came
    except SystemExit:  # how a library answers to the signal
        if not came:
            raise
    finally:
        restore()
    if came:
        signal.raise_signal(came[0])


def shield_loader(worker: int) -> None:
    """The `worker_init_fn` of a loader: SIGTERM ends its processes only where their owner sends it.

    torchrun and SLURM signal all processes, while the owner still reads from these to finish its step.
    """

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != owner:
            pass
        os._exit(0)  # as torch's own handler does

    if hasattr(signal, "sigwaitinfo"):  # neither on Windows nor on macOS
        owner = os.getppid()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=wait, daemon=True).start()
