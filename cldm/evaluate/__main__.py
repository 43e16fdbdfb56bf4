"""Measure a compositor on held-out rendered scenes; composites of a benchmark: `compose.benchmark score`."""

import sys

from cldm.config import EvaluateSettings
from ldm.settings.cli import App, command, run_module, single_app
from ldm.settings.later import later


def build_app() -> App:
    if any(word.partition("=")[0] == "--results" for word in sys.argv):
        raise ValueError("--results: composites are scored by `python -m compose.benchmark score --results`")
    return single_app(command(EvaluateSettings, later("cldm.evaluate.run:evaluate")), bare=False)()


if __name__ == "__main__":
    run_module(build_app)
