"""What does a locator of unknown training expect, and does it look? Before it is used, ask it.

python -m llava_bifrost.probe FOLDER [--images PHOTOGRAPHS] [--out REPORT.json]
"""

from ldm.settings.cli import command, run_module, single_app
from llava_bifrost.settings import ProbeSettings

build_app = single_app(command(ProbeSettings, "llava_bifrost.probing:probe_locator"), bare=False)

if __name__ == "__main__":
    run_module(build_app)
