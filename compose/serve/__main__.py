"""The page and the HTTP API, on this machine only unless `--host` says otherwise.

python -m compose.serve --open
python -m compose.serve --host 0.0.0.0 --auth anne:secret --allow /data/images --rate-limit 20
"""

from compose.serve.settings import ServeSettings
from ldm.settings.cli import command, run_module, single_app

build_app = single_app(command(ServeSettings, "compose.serve.app:serve"))

if __name__ == "__main__":
    run_module(build_app)
