#!/bin/sh
# torch 2.13.0: Ctrl-C while `torch.tensor` or `torch.as_tensor` reads a sequence becomes "ValueError: could not
# determine the shape of object type ...".
#
# Both ask the sequence for its first item to find the shape. Whatever is raised there, KeyboardInterrupt and
# SystemExit of a signal handler included, is replaced by that ValueError, without a cause. Lists of lazily read
# rows and torch's own untyped storages are such sequences, so it happens while weights are loaded: a program
# that leaves out what it cannot read (`except ValueError`) goes on without a network instead of ending, and
# one that ends says that the file is broken. An item that cannot be read loses its reason in the same way.
#
# A sequence raises at its first item. Prints what arrives; exits with 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import signal
import sys

import numpy
import torch


class Rows:
    def __init__(self, act):
        self.act = act

    def __len__(self):
        return 3

    def __getitem__(self, index):
        self.act()
        return 1.0


def unreadable():
    raise OSError("rows.bin: no such file")


def arrives(make, act):
    try:
        make(Rows(act))
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


changed = False
for library, make in (("torch.tensor", torch.tensor), ("torch.as_tensor", torch.as_tensor), ("numpy.array", numpy.array)):
    for name, act in (("Ctrl-C", lambda: signal.raise_signal(signal.SIGINT)), ("OSError", unreadable)):
        seen = arrives(make, act)
        print(f"{library:16} {name:8} arrives as {seen}")
        if library.startswith("torch"):
            changed |= seen != "ValueError: could not determine the shape of object type 'Rows'"
sys.exit(1 if changed else 0)
PYTHON
echo "as stated: torch puts a ValueError in the place of what was raised"
