"""Measure a locator: does its answer satisfy the sentence, in this image?

python -m llava_bifrost.evaluate --scenes 1024 --out benchmarks/results/locator.json
python -m llava_bifrost.evaluate --dataset outputs/location/data.json --out outputs/locator.json
"""

from ldm.settings.cli import command, run_module, single_app
from llava_bifrost.evaluate.run import LocatorEvaluation, evaluate_locator

build_app = single_app(command(LocatorEvaluation, evaluate_locator), bare=False)

if __name__ == "__main__":
    run_module(build_app)
