"""Train the compositor.

    python run_train_bifrost.py configs/bifrost.yaml [key=value ...]
    python run_train_bifrost.py configs/tiny/compositor.yaml

To continue an interrupted run, run the same command again.
"""

from cldm.training.settings import RunConfig
from ldm.settings.cli import run_module, trainer

build_app = trainer(RunConfig, "cldm.training.run:train")

if __name__ == "__main__":
    run_module(build_app)
