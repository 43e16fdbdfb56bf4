"""Where a settings file is, when it is named as in the published README."""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger(__name__)

HERE = Path("configs/inpainting")
# Names in the published README that no published file had -> the file that was meant.
ALIASES = {
    "text_to_image/sd_2_inp_finetuned.yaml": "text_to_image/train/sd_2_inp_finetuned.yaml",
    "text_to_image/sd_2_inp_rca_finetuned.yaml": "text_to_image/train/sd_2_inp_rca_finetuned.yaml",
    "image_to_text/test/config_base.yaml": "image_to_text/test/llava_prompt.yaml",
}


def find_config(path: Path) -> Path:
    """The file itself; a path under models/configs/ is looked up in configs/inpainting/ and said so.

    Raises ValueError naming the files that there are.
    """
    if path.is_file():
        return path
    name = name_inside(path)
    if name is not None:
        found = HERE / ALIASES.get(name, name)
        if found.is_file():
            log.info("%s is %s here", path, found)
            return found
    there = sorted(one.as_posix() for one in HERE.rglob("*.yaml"))
    raise ValueError(f"--config-path: there is no file {path}; there are {', '.join(there) or 'none'}")


def name_inside(path: Path) -> str | None:
    """models/configs/a/b.yaml and configs/inpainting/a/b.yaml -> a/b.yaml"""
    parts = path.parts
    for folder in (("models", "configs"), HERE.parts):
        for start in range(len(parts) - 2):
            if parts[start : start + 2] == folder:
                return "/".join(parts[start + 2 :])
    return None
