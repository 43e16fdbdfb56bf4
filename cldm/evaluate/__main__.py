"""Measure a compositor on held-out rendered scenes; composites of a benchmark: `compose.benchmark score`."""

from cldm.config import EvaluateSettings
from ldm.settings.cli import command, run_module, single_app

build_app = single_app(command(EvaluateSettings, "cldm.evaluate.run:evaluate"), bare=False)

if __name__ == "__main__":
    run_module(build_app)
