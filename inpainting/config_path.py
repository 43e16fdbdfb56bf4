"""Settings files that are named as in the published README."""

from __future__ import annotations

import logging
import re
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
    inside = re.search(r"(?:^|/)(?:models/configs|configs/inpainting)/(.+)", path.as_posix())
    file = HERE / ALIASES.get(inside[1], inside[1]) if inside else None
    if file is not None and file.is_file():
        log.info("%s is %s here", path, file)
        return file
    there = sorted(file.as_posix() for file in HERE.rglob("*.yaml"))
    raise ValueError(f"--config-path: there is no file {path}; there are {', '.join(there) or 'none'}")
