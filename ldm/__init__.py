"""What any product needs: settings, images, latents, one denoise loop, experts. Knows no product."""

import os
import sys
from types import TracebackType

__version__ = "0.1.0"  # of the whole repository; CHANGELOG.md and CITATION.cff name the same


def end_quietly(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The excepthook of commands: Ctrl-C while one is imported is one line and exit code 130."""
    cause: BaseException | None = error  # a library may make another error of it
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return sys.__excepthook__(kind, error, trace)
    sys.stderr.write("interrupted\n")
    sys.exit(130)


_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_PROGRAM = os.path.abspath(sys.argv[0])
if sys.argv[0] == "-m" or (_PROGRAM.startswith(_HOME + os.sep) and os.path.isfile(_PROGRAM)):  # a command
    sys.excepthook = end_quietly
