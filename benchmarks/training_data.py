"""CPU time and size of a training example by source, beside an earlier revision, in turn.

    BIFROST_TEST_DATA=/path OMP_NUM_THREADS=1 python -m benchmarks.training_data [--out FILE] [--pairs 3]

The sources are the samples of the test data; SA-1B is made at its true size of 2250 x 1500 of them, with the
hundred segments that its images have. Every side reads depth maps as its `precompute_depth` writes them: of
the size of the image before, of the size of the network now. What is rejected on the way counts.
"""

import logging
from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import cv2
import numpy as np
import typer
import yaml
from pycocotools import mask as run_lengths

from benchmarks.harness import RESULTS, Out, photographs, write_results
from benchmarks.size import BEFORE, checked_out, row_in
from datasets.sources.coco import segment_mask
from ldm.files import ROOT, read_json, write_json
from ldm.images import read_depth, read_image, resize, write_depth
from ldm.settings.cli import run_module, single_app

SIZE = (1500, 2250)  # of most images of SA-1B
NOISE = 3e-4  # of a depth map, in its range; chosen: a full-size map then takes 4 to 5 MB, as real ones
SEGMENTS = 100  # of an image of SA-1B on average (Kirillov et al. 2023)


def make_sa1b(images: Path, depth: Path, made: Path) -> None:
    """Images, annotations and depth maps of SA-1B at their true size, of the sample's."""
    from ldm.experts.depth import DepthInput

    for path in sorted(images.glob("*/*.json")):
        document, rng = read_json(path), np.random.default_rng(0)
        name, (h, w) = f"{path.parent.name}/{path.stem}", SIZE
        image_u8 = resize(read_image(path.with_suffix(".jpg")).rgb_u8, SIZE, how="cubic")
        grain = cv2.resize(rng.normal(0, 6, (h // 2, w // 2, 3)).astype(np.float32), (w, h))  # of a camera
        image_u8 = np.clip(image_u8 + grain, 0, 255).astype(np.uint8)
        (made / "sam" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(made / "sam" / f"{name}.jpg"), image_u8[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        stored, segments = document["image"], []
        for entry in document["annotations"]:
            mask = segment_mask(entry["segmentation"], (stored["height"], stored["width"]), str(path))
            segments.append(resize(mask, SIZE))
        for _ in range(SEGMENTS - len(segments)):  # small ones, which are no objects
            disc, centre = np.zeros(SIZE, np.uint8), (int(rng.integers(w)), int(rng.integers(h)))
            cv2.circle(disc, centre, int(rng.integers(10, 90)), 1, -1)
            segments.append(disc)
        annotations: list[dict[str, Any]] = []
        for number, mask in enumerate(segments):
            code: Any = run_lengths.encode(np.asfortranarray(mask.astype(np.uint8)))
            segmentation = {"size": list(SIZE), "counts": code["counts"].decode()}
            annotations.append({"id": number, "segmentation": segmentation, "area": int(mask.sum())})
        size = {"width": w, "height": h, "file_name": path.with_suffix(".jpg").name}
        write_json(made / "sam" / f"{name}.json", {"image": size, "annotations": annotations})
        # Real maps are not smooth in 16 bits; these are those of 8 bits with noise, at the network's size.
        map_01 = resize(read_depth(depth / f"{name}.png"), DepthInput().network_size(SIZE), how="linear")
        map_01 = resize(map_01 + rng.normal(0, NOISE, map_01.shape).astype(np.float32), SIZE, how="cubic")
        write_depth(made / "sam_depth" / f"{name}.png", np.clip(map_01, 0, 1))


def settings_of(side: str, data: Path, made: Path) -> Path:
    """The settings file of one side; that of now has depth maps of its own, of the size of the network."""
    from ldm.experts.depth import DepthInput

    text = Path(__file__).with_name("training_data.yaml").read_text(encoding="utf-8")
    sections = yaml.safe_load(text.replace("DATA", str(data)).replace("MADE", str(made)))

    def adapt(section: dict[str, Any], name: str) -> None:
        for key, value in list(section.items()):
            if isinstance(value, dict):
                adapt(value, f"{name}_{key}")
            elif key == "images" and side == "before":
                section["pictures"] = section.pop("images")  # its former name
            elif key == "depth" and side == "now":
                section["depth"] = str(made / "small" / name)
                for file in sorted(Path(value).rglob("*.png")):
                    map_01 = read_depth(file)
                    n, m = DepthInput().network_size((map_01.shape[0], map_01.shape[1]))
                    scale = min(1.0, (n * m / map_01.size) ** 0.5)
                    size = round(map_01.shape[0] * scale), round(map_01.shape[1] * scale)
                    small_01 = resize(map_01, size) if scale < 1 else map_01
                    write_depth(Path(section["depth"], file.relative_to(value)), small_01)

    adapt(sections, "")
    path, weights = made / f"{side}.yaml", dict.fromkeys(sections, 1.0)
    path.write_text(yaml.safe_dump({"weights": weights, **sections}), encoding="utf-8")
    return path


def measure_training_data(
    pairs: Annotated[int, typer.Option(help="how often each is measured, in turn", min=1)] = 3,
    examples: Annotated[int, typer.Option(help="examples of each source", min=1)] = 40,
    out: Out = RESULTS / "training_data.json",
) -> dict[str, Any]:
    """Measure training examples here and at an earlier revision."""
    code = Path(__file__).with_name("earlier_process.py").read_text(encoding="utf-8")
    rows: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    with TemporaryDirectory() as folder, checked_out(BEFORE) as before:
        made, samples = Path(folder), photographs()
        make_sa1b(samples / "sam/SAM", samples / "sam/SAM_depth", made)
        sides = {"before": before, "now": ROOT}
        settings = {side: settings_of(side, samples, made) for side in sides}
        trees = {"before": made / "sam_depth", "now": made / "small/_sam"}
        sizes = {side: max(p.stat().st_size for p in tree.rglob("*.png")) for side, tree in trees.items()}
        for side in list(sides) * pairs:
            given = "examples", str(settings[side]), str(examples)
            for source, row in row_in(sides[side], code, *given).items():
                rows[source][side].append(row)
            logging.getLogger(__name__).info("%s measured", side)
    body: dict[str, Any] = {"earlier_revision": BEFORE, "sam_depth_map_mb": {}, "sources": {}}
    body["sam_depth_map_mb"] = {side: round(size / 1e6, 2) for side, size in sizes.items()}
    for source, both in rows.items():
        spent = {side: median(row["cpu_ms"] for row in measured) for side, measured in both.items()}
        body["sources"][source] = {
            "cpu_ms": spent, "ratio": round(spent["before"] / spent["now"], 2),
            "mb": {side: measured[-1]["mb"] for side, measured in both.items()}, "measured": both,
        }  # fmt: skip
    write_results(out, body)
    return body


build_app = single_app(measure_training_data)

if __name__ == "__main__":
    run_module(build_app)
