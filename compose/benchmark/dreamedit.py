"""DreamEditBench (Li et al. 2023) as SHINE arranged it -> cut-outs and a manifest of our benchmark.

CLASS/bg/content.json  [{"image", "bbox": [x0, y0, x1, y1], "source_prompt"}], bg/IMAGE
CLASS/fg/VIEW.jpg      the object, fg/VIEW.png its mask
"""

from pathlib import Path
from typing import Any

import numpy as np

from datasets.benchmark import Anchor, BenchmarkCase, Manifest, write_benchmark
from datasets.geometry import check_box01
from datasets.sources.readers import subfolders
from ldm.checkpoints import folder_written_whole
from ldm.files import named_failure, read_json
from ldm.images import read_image, read_mask, write_png

FRAME = 768  # pixels; boxes are in images of this side, as SHINE's evaluation reads them
WRONG = (KeyError, TypeError, ValueError, AttributeError)  # what reading a wrong entry raises
RELATION = "in its box"  # there is no object beside it in this benchmark


def build_dreamedit(source: Path, out: Path, view: str) -> Manifest:
    """Write OUT/manifest.json and OUT/objects/CLASS/VIEW.png; ValueError names the file that is wrong."""
    found = [folder for folder in subfolders(source) if (folder / "bg" / "content.json").is_file()]
    if not found:
        raise ValueError(f"{source} has no folder CLASS/bg with a content.json")
    cases = list[BenchmarkCase]()
    with folder_written_whole(out) as made:
        roots = {"pictures": source, "objects": made / "objects"}
        for folder in found:
            item, file, own = read_image(folder / "fg" / f"{view}.jpg"), f"{view}.png", folder.name
            mask = read_mask(folder / "fg" / file, size=item.size)
            write_png(roots["objects"] / own / file, item.rgb_u8, alpha_u8=mask.astype(np.uint8) * 255)
            rows: Any = read_json(listing := folder / "bg" / "content.json", list)
            for number, row in enumerate(rows, 1):
                with named_failure(f"{listing}: entry {number}", *WRONG):
                    box01 = check_box01([float(edge) / FRAME for edge in row["bbox"]])
                    image, text = Path(row["image"]), str(row.get("source_prompt", ""))
                where = RELATION, Anchor("", 0, box01), box01, text
                names = f"{own}_{image.stem}", f"{own}/bg/{image.name}", own, file
                cases.append(BenchmarkCase(*names, *where))
        return write_benchmark(made / "manifest.json", source.name, 0, cases, roots)
