#!/bin/sh
# torch 2.13.0: the gradients of a training under `torch.autocast` depend on other threads that use autocast.
#
# Autocast keeps the half-precision copy of a weight, so that a weight that is read twice is cast once; the two
# gradients are then added in half precision, behind the cast. The copies of all threads lie in one place, and a
# thread that leaves its outermost `torch.autocast` drops them all. Where that happens between the two reads, the
# weight is cast again and its gradients are added in float32. So two trainings in one process, or a training
# beside a server that answers under autocast, are not repeatable though all seeds are fixed: no error, no warning.
# `cache_enabled=False` gives the same gradients whatever runs beside.
#
# One linear layer is read twice; in between another thread enters and leaves autocast, or does not. Prints the
# largest difference of the gradient; exits with 1 if the default no longer differs, or the switch does not help.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import threading

import torch

torch.manual_seed(0)
layer, rows = torch.nn.Linear(64, 64), torch.randn(2, 32, 64)


def enter_and_leave():
    with torch.autocast("cpu", torch.bfloat16):
        pass


def gradient(beside, **options):
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, **options):
        first = layer(rows[0]).float().sum()
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
        second = layer(rows[1]).float().square().sum()
    (first + second).backward()
    return layer.weight.grad.clone()


found = {}
for name, options in (("default", {}), ("cache_enabled=False", {"cache_enabled": False})):
    alone = gradient(lambda: None, **options)
    again = gradient(lambda: None, **options)
    beside = gradient(enter_and_leave, **options)
    found[name] = (beside - alone).abs().max().item()
    print(f"{name:20} alone twice {(again - alone).abs().max():.4f}  beside a thread {found[name]:.4f}  of {alone.abs().max():.1f}")
sys.exit(0 if found["default"] > 0 and found["cache_enabled=False"] == 0 else 1)
PYTHON
