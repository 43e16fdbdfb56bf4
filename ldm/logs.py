"""What a command says while it runs: its own lines and warnings on standard error, nothing of libraries."""

import logging

import diffusers
import transformers


def start_logging(level: int = logging.INFO) -> None:
    """Plain lines on standard error; for the `__main__` part of a command.

    Libraries report errors only, and no bars for the milliseconds in which weights are read.
    """
    logging.basicConfig(level=level, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
