"""LoMOE-Bench (Chakrabarty et al. 2024), or MICE-Bench in its layout, -> painting data of test images alone.

LoMOE.json                {"00": {"image_path", "mask_path": '"masks/a.png" "masks/b.png"', "fg_prompt":
                          '"a cat" "a dog"'}}: paths below the folder, one prompt per mask
utils/target_prompts.txt  the whole edited image in words, one line per number; may be absent
"""

import shlex
import shutil
from pathlib import Path
from typing import Any

from inpainting.data.batches import LomoeSettings
from inpainting.data.paintings import ANNOTATIONS, ANSWER_MARK, checked_name, encode_object
from ldm.checkpoints import folder_written_whole
from ldm.files import named_failure, read_json, read_text, write_atomic
from ldm.images import read_image, read_mask, resize, write_mask

TABLE, TARGETS, DESCRIPTIONS = "LoMOE.json", "utils/target_prompts.txt", "descriptions.json"


def build_lomoe(settings: LomoeSettings) -> None:
    """Write the painting data of the benchmark; `test generate` and `test compute` read them."""
    source, file = settings.source, settings.source / TABLE
    targets = source / TARGETS
    lines = read_text(targets).splitlines() if targets.is_file() else []
    descriptions: dict[str, Any] = {}
    with folder_written_whole(settings.out_dir) as folder:
        for name, row in read_json(file).items():
            with named_failure(f"{file}: {name}", KeyError, TypeError, ValueError):
                image = source / row["image_path"]
                masks, prompts = (shlex.split("" + row[key]) for key in ("mask_path", "fg_prompt"))
                if len(masks) != len(prompts) or not masks:
                    raise ValueError(f"{len(masks)} masks and {len(prompts)} prompts")
                stored = checked_name(f"{name}{image.suffix}")
            size, stem, entries = read_image(image).size, Path(stored).stem, {}
            for number, (path, prompt) in enumerate(dict(zip(masks, prompts, strict=True)).items()):
                mask = resize(read_mask(source / path).astype("uint8"), size, how="nearest") > 0
                write_mask(folder / "masks" / stem / f"mask_{number}.png", mask)
                entries[f"mask_{number}"] = {"concept": prompt, "caption": prompt}
            write_atomic(folder / "entities" / stem / ANNOTATIONS, encode_object(entries))
            (folder / "images" / "test").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image, folder / "images" / "test" / stored)
            if name.isdigit() and int(name) < len(lines):
                descriptions[stored] = {"description": f"{ANSWER_MARK}{lines[int(name)].strip()}"}
        if lines:
            write_atomic(folder / DESCRIPTIONS, encode_object(descriptions))
