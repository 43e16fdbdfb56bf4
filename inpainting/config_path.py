"""Settings files that are named as in the published README."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from ldm.files import located, visible_files
from ldm.locks import alone
from ldm.settings.cli import App, new_app, takes_keys
from ldm.settings.config import load_config
from ldm.settings.later import later

ConfigPath = Annotated[Path, typer.Option(help="YAML file of settings", metavar="FILE")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, dotted for sections")]
HERE = Path("configs/inpainting")
# Names in the published README that no published file had -> the file that was meant.
ALIASES = {
    "text_to_image/sd_2_inp_finetuned.yaml": "text_to_image/train/sd_2_inp_finetuned.yaml",
    "text_to_image/sd_2_inp_rca_finetuned.yaml": "text_to_image/train/sd_2_inp_rca_finetuned.yaml",
    "image_to_text/test/config_base.yaml": "image_to_text/test/llava_prompt.yaml",
}


def find_config(path: Path) -> Path:
    """The file itself; a path under models/configs/ is looked up in configs/inpainting/, with a log line."""
    if path.is_file():
        return path
    inside = re.search(r"(?:^|/)(?:models/configs|configs/inpainting)/(.+)", path.as_posix())
    file = located(HERE / ALIASES.get(inside[1], inside[1])) if inside else None
    if file is not None and file.is_file():
        logging.getLogger(__name__).info("%s is %s here", path, file)
        return file
    there = [file.as_posix() for file in visible_files(located(HERE), "**/*.yaml")]
    raise ValueError(f"--config-path: there is no file {path}; there are {', '.join(there) or 'none'}")


def config_app(title: str, name: str, schema: type, work: str, help: str) -> Callable[[], App]:
    """Builds an app of the verb `--config-path FILE [key=value ...]`, the one writer of `project_dir`."""
    writer = alone(later(work), lambda settings: settings.project_dir)

    def verb(config_path: ConfigPath, overrides: Overrides = None) -> None:
        writer(load_config(schema, find_config(config_path), overrides or []))

    def build() -> App:
        app = new_app(title)
        app.command(name, cls=takes_keys(schema), help=help)(verb)
        return app

    return build
