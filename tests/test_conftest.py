"""What a command leaves in the process that ran it reaches no later test."""

import signal

from ldm.files import STOPPED
from ldm.settings.cli import stop


def test_a_test_may_end_with_the_handlers_and_the_mark_of_a_command() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    STOPPED.append(signal.SIGINT)


def test_the_next_one_finds_neither() -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is not stop
    assert STOPPED == []
