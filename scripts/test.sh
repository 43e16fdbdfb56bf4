#!/bin/sh
# Makes the environment if needed, then runs the linter, the type checker and the tests.
#   bash scripts/test.sh [arguments of pytest, e.g. -m slow, or tests/ldm/test_config.py]
# BIFROST_TEST_DATA names a folder of extra real data; tests that need it are skipped without it.
set -eu
. "$(dirname -- "$0")/setup.sh"
cd "$ROOT"
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
# Two threads on a busy two-core machine are several times slower than one.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

"$VENV_PY" -m ruff check .
"$VENV_PY" -m ruff format --check --quiet .
"$VENV_PY" -m mypy
# One process a core, the tests of a file together: they share fixtures.
[ $# -gt 0 ] || set -- -n auto --dist loadfile
"$VENV_PY" -m pytest -q "$@"
