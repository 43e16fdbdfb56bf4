"""Random valid and invalid settings, images, texts and weights: no foreign exception, no drift.

    python -m benchmarks.fuzz [--count 20000]           (20 minutes on a busy core)
    python -m benchmarks.fuzz --first 4711 --count 1    item 4711 again

A refusal is a plain ValueError, or one of ours; any other exception is foreign. Forked processes run 200
items each: one that crashes a library costs itself alone.
"""

import importlib
import io
import json
import os
import signal
import tempfile
import traceback
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from tqdm.auto import tqdm

from benchmarks.campaign_state import output_to
from benchmarks.harness import RESULTS, Out, write_results
from cldm.config import NetworkConfig
from cldm.training.settings import RunConfig
from compose.settings import ComposeSettings
from inpainting.paint import TINY_MODEL, PaintSettings
from ldm.files import numbered_lines, read_json, read_table
from ldm.images import read_depth, read_image, read_mask
from ldm.settings.cli import run_module, single_app
from ldm.settings.config import Layer, load_config, merge_layers
from ldm.settings.later import later

IDENTITY = NetworkConfig(identity_width=16, identity_layers=1, identity_heads=2, reference_size=28)
CHUNK = 200  # items of one process
LONGEST_S = 120  # of one item, on a busy machine
KINDS = {"images": 0.4, "texts": 0.25, "settings": 0.2, "weights": 0.12, "compose": 0.015, "paint": 0.015}
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F")
FITTING = {"background": "RGB", "object": "RGBA", "object_mask": "1", "target_mask": "1",
           "background_depth": "L", "object_depth": "L"}  # fmt: skip
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
ODD: Any = [None, True, -1, 0, 1, 0.5, 2.5, 1e30, np.nan, "", "a", "1,2", [], {}, "0.5", "none", [0.1, 0.9]]
TEXTS = ("configs/tiny/compositor.yaml", "configs/models.yaml", "assets/examples/cases.json")
READERS = (lambda path: load_config(RunConfig, path), lambda path: read_table(path, ["name", "seed"]),
           read_json, numbered_lines, later("compose.batch:read_jobs"))  # fmt: skip
GIVEN = ((ComposeSettings, {"background": "a.png", "object": "b.png", "box": [0, 0, 1, 1]}),
         (PaintSettings, {"image": "a.png", "masks": ["b.png"], "prompts": ["a cube"]}))  # fmt: skip


@dataclass
class Fuzz:
    folder: Path
    models: Any = None  # loaded when an item needs them
    painter: Any = None
    encoder: Any = None

    def write(self, name: str, data: bytes, rng: np.random.Generator, damaged: float) -> Path:
        """A file of the data; a fraction of them is cut, changed, repeated or gets more at random places."""
        changed = bytearray(data)
        for _ in range(rng.integers(1, 4) if rng.random() < damaged else 0):
            at, length = int(rng.integers(0, len(changed) + 1)), int(rng.integers(1, 20))
            parts = (b"", changed[at + length :], rng.bytes(length) + changed[at:], changed[at // 2 :],
                     rng.bytes(1) + changed[at + 1 :])  # fmt: skip
            changed[at:] = parts[rng.integers(len(parts))]
        (self.folder / name).write_bytes(changed)
        return self.folder / name

    def image(self, rng: np.random.Generator, name: str = "image", size: Any = None, mode: str = "") -> Path:
        """A file of random mode, format and size, often damaged; with `mode` a PNG, hardly ever damaged."""
        h, w = rng.integers(1, 48, 2) if size is None else size
        values, part = rng.integers(0, 256, (h, w, 4), np.uint8), np.zeros((h, w), np.uint8)
        part[h // 4 : h - h // 4, w // 5 : w - w // 5] = 255
        values[..., 3] = part if mode == "RGBA" else values[..., 3]
        kind, damaged = ("PNG", 0.01) if mode else (str(rng.choice(FORMATS)), 0.6)
        wanted = mode or str(rng.choice(MODES))
        image = Image.fromarray(part if mode == "1" else values)
        image, data = image.convert("I") if wanted == "I;16" else image, io.BytesIO()
        try:
            image.convert(wanted).save(data, kind)
        except (OSError, ValueError):  # the format does not know the mode
            image.convert("RGB").save(data, kind)
        return self.write(f"{name}.{rng.choice([kind.lower(), 'png', 'jpg'])}", data.getvalue(), rng, damaged)

    def images(self, rng: np.random.Generator) -> None:
        (read_image, read_mask, read_depth)[rng.integers(3)](self.image(rng))

    def texts(self, rng: np.random.Generator) -> None:
        source = Path(str(rng.choice(TEXTS)))
        READERS[rng.integers(len(READERS))](self.write(source.name, source.read_bytes(), rng, 0.9))

    def settings(self, rng: np.random.Generator) -> None:
        schema, given = GIVEN[rng.integers(2)]
        names = rng.choice([*schema.__dataclass_fields__, "colour"], rng.geometric(0.6), replace=False)
        values = {str(name): ODD[rng.integers(len(ODD))] for name in names}
        merge_layers(schema, [Layer(given if rng.random() < 0.9 else {}), Layer(values)])

    def weights(self, rng: np.random.Generator) -> None:
        import torch
        from safetensors.torch import save

        from cldm.convert.plan import plan_single
        from cldm.create import create_identity
        from ldm.weight_files import open_weights

        self.encoder = self.encoder or create_identity(IDENTITY).encoder
        state = {name: value * rng.random() for name, value in self.encoder.state_dict().items()}
        if rng.random() < 0.3:
            state[str(rng.choice(list(state)))] = torch.ones(tuple(rng.integers(0, 4, 2)))
        wrapped = {"state_dict": state}
        held: Any = state, wrapped, [state], {"a": 1}, {**wrapped, "epoch": np.float64(1)}
        suffix, data = f".{rng.choice(['safetensors', 'pt', 'ckpt', 'bin'])}", io.BytesIO(save(state))
        if suffix != ".safetensors":
            data = io.BytesIO()
            torch.save(held[rng.integers(5)], data, _use_new_zipfile_serialization=bool(rng.integers(2)))
        file = open_weights(self.write(f"weights{suffix}", data.getvalue(), rng, 0.6))
        plan_single(self.encoder, file)
        for key in file.shapes:
            file.read(key)

    def compose(self, rng: np.random.Generator) -> None:
        from compose import compose, load_models

        size, corners = rng.integers(2, 64, 2), np.sort(rng.uniform(-0.05, 1.05, (2, 2)), 0).clip(0, 1)
        files = {
            name: str(self.image(rng, name, size, mode if rng.random() < 0.9 else ""))
            for name, mode in FITTING.items()
            if name in ("background", "object") or rng.random() < 0.3
        }
        values = {"box": corners.flatten().tolist(), "seed": int(rng.integers(2**32)), "detail": rng.random(),
                  "mode": str(rng.choice(["place", "place", "replace", "inpaint", "id-transfer"])),
                  "steps": int(rng.integers(1, 3)), "depth": sorted(rng.random(2).tolist())}  # fmt: skip
        settings = merge_layers(ComposeSettings, [Layer({**files, **values})])
        self.models = load_models(settings, self.models)
        result = compose(settings, self.models, progress=False)
        outside, before = ~result.edit_mask, read_image(settings.background).own_u8
        assert (result.images_u8[0][outside] == before[outside]).all(), "pixels changed outside"

    def paint(self, rng: np.random.Generator) -> None:
        from inpainting.models.text_to_image.load import load_inpainter
        from inpainting.models.text_to_image.pipeline import paint

        self.painter = self.painter or load_inpainter(TINY_MODEL, device="cpu")
        image = read_image(self.image(rng, size=rng.integers(2, 80, 2), mode="RGB"))
        masks = [rng.random(image.size) < rng.random() ** 2 for _ in range(rng.integers(0, 4))]
        regions = [(mask, str(rng.choice(["a red cube", "", "x " * 200, "\u00e4\u4e2d"]))) for mask in masks]
        result = paint(image, regions, self.painter, int(rng.integers(2**31)), progress=False)
        outside = ~np.any(masks, axis=0)
        assert (result.images_u8[0][outside] == image.rgb_u8[outside]).all(), "pixels changed outside"

    def run_items(self, seed: int, items: range, record: Path) -> None:
        """A line of the record for the start and one for the end of each item: [item, kind, what came]."""
        with record.open("a", buffering=1, encoding="utf-8") as file:
            for item in items:
                rng, came = np.random.default_rng((seed, item)), "made"
                kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
                file.write(json.dumps([item, kind, "began"]) + "\n")
                signal.alarm(LONGEST_S)
                try:
                    getattr(self, kind)(rng)
                except Exception as error:
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    foreign = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
                    came = "refused" if is_ours(error) else foreign[-300:]
                file.write(json.dumps([item, kind, came]) + "\n")


def is_ours(error: Exception) -> bool:
    home = type(error).__module__.split(".")[0]
    return type(error) is ValueError or home in ("ldm", "datasets", "cldm", "inpainting", "llava_bifrost")


def run_fuzz(
    count: Annotated[int, typer.Option(help="items", min=1)] = 20000,
    first: Annotated[int, typer.Option(help="index of the first item", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="of all items")] = 0,
    out: Out = RESULTS / "fuzz.json",
) -> dict[str, Any]:
    """Read, compose and paint random inputs: every error must be one of ours, and no pixel may drift."""
    import torch

    for name in ("cldm.convert.plan", "compose.pipeline", "inpainting.models.text_to_image.pipeline"):
        importlib.import_module(name)  # here, so that no forked process needs to
    torch.set_num_threads(1)
    counts: dict[str, Counter] = defaultdict(Counter)
    foreign, item, last = [], first, first + count
    with tempfile.TemporaryDirectory() as folder, tqdm(total=count, disable=None) as bar:
        fuzz, record = Fuzz(Path(folder)), Path(folder) / "record.jsonl"
        while item < last:
            record.unlink(missing_ok=True)
            if not (child := os.fork()):
                output_to(Path(os.devnull))
                fuzz.run_items(seed, range(item, min(item + CHUNK, last)), record)
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
            if code:
                lines.append([*lines[-1][:2], f"the process ended with {code}"])
            for number, kind, came in lines:
                known = came in ("began", "made", "refused")
                counts[kind][came if known else "foreign"] += 1
                foreign += [] if known else [{"item": number, "kind": kind, "what": came}]
            bar.update(lines[-1][0] + 1 - item)
            item = lines[-1][0] + 1
    write_results(out, {"seed": seed, "items": count, "foreign": foreign, "kinds": counts})
    return {"out": out, "failed": foreign}


build_app = single_app(run_fuzz)

if __name__ == "__main__":
    run_module(build_app)
