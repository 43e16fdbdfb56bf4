"""Measure a locator: does its answer satisfy the sentence, in this image?

python -m llava_bifrost.evaluate --scenes 1024 --out benchmarks/results/locator.json
"""

from ldm.settings.cli import command, run_module, single_app
from ldm.settings.later import later
from llava_bifrost.settings import LocatorEvaluation

evaluate = later("llava_bifrost.evaluate.run:evaluate_locator")
build_app = single_app(command(LocatorEvaluation, evaluate), bare=False)

if __name__ == "__main__":
    run_module(build_app)
