"""Rendered scenes on disk: shards of 256 scenes, one safetensors file each, written whole or not at all;
and their contact sheets: every output of the renderer side by side.

Shard `j` holds the scenes first_seed + 256 j ... of one set of options. A shard that is there, complete and
made with the same settings is skipped. The scenes of an unfinished shard are kept in hidden parts.
Legend: k scenes of a shard, n solids (padded), h w pixels, r reference size.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save
from torch import Tensor
from tqdm import tqdm

from datasets.scenes.batch import SceneFacts, render
from datasets.scenes.describe import Scene
from datasets.scenes.layout import sample_scene
from datasets.scenes.settings import SceneOptions, SheetSettings, StoreSettings, eval_seed, train_seed
from ldm.cluster import spread
from ldm.files import named_failure, write_atomic
from ldm.images import encode_png
from ldm.locks import taken
from ldm.result import write_result
from ldm.settings.choices import shard_of
from ldm.settings.config import to_plain
from ldm.sheet import grid

log = logging.getLogger(__name__)

SCENES_PER_SHARD = 256
HEADER = "scenes"  # key of the JSON text in a shard's header
PACKED = {"amodal": "image_u8", "reference_mask": "reference_u8"}  # stored as bits -> the array of that width
FORMAT = 1  # of the files; part of what must agree before a shard is kept
PART_S = 5.0  # seconds between the parts of an unfinished shard; with one scene, what a kill can lose
Rendered = tuple[dict[str, np.ndarray], list[dict[str, Any]]]  # arrays as stored, facts of scenes
Work = tuple[Path, str, list[int]]  # a shard, its recipe, the seeds of its scenes
Sampler = Callable[[int, SceneOptions], Scene]


@dataclass(frozen=True, eq=False)
class Shard:
    """Arrays of one file. Depth is depth_01 * 65535."""

    image_u8: np.ndarray  # (k, h, w, 3)
    without_u8: np.ndarray  # (k, h, w, 3)
    depth_u16: np.ndarray  # (k, h, w)
    without_depth_u16: np.ndarray  # (k, h, w)
    instances_u8: np.ndarray  # (k, h, w) 0 the room, i solid i - 1
    amodal: np.ndarray  # (k, n, h, w) bool
    reference_u8: np.ndarray  # (k, r, r, 3)
    reference_mask: np.ndarray  # (k, r, r) bool
    reference_depth_u16: np.ndarray  # (k, r, r)
    facts: tuple[SceneFacts, ...]


def depth_01(depth_u16: np.ndarray) -> np.ndarray:
    """Stored depth -> float32 in [0, 1], 1 = nearest."""
    return depth_u16.astype(np.float32) / 65535


def render_shards(
    settings: StoreSettings,
    sample: Sampler = sample_scene,  # makes the scene of a seed
    variant: str = "",  # the name of another sampler than the ordinary one
) -> list[Path]:
    """Render scenes into shards; run again to continue."""
    # What decides the contents of a shard, as JSON text beside its seeds.
    names = {field.name for field in fields(SceneOptions)} - {"chunk"}
    options = {name: value for name, value in to_plain(settings).items() if name in names}
    for name in ("world", "renderer", "cutouts"):
        if options[name] == getattr(SceneOptions, name):
            del options[name]  # as shards were named before there was another
    common = {"format": FORMAT, "options": options} | ({"law": variant} if variant else {})
    seed_of, (index, every) = eval_seed if settings.split == "eval" else train_seed, shard_of(settings.shard)
    seeds, paths, recipes = [seed_of(settings.first_seed + i) for i in range(settings.count)], {}, {}
    for j in range(index, -(-settings.count // SCENES_PER_SHARD), every):
        path = settings.out / f"shard-{j:05d}.safetensors"
        paths[path] = own = seeds[j * SCENES_PER_SHARD : (j + 1) * SCENES_PER_SHARD]
        recipes[path] = json.dumps(common | {"seeds": [own[0], own[-1]]}, sort_keys=True)

    total = sum(map(len, paths.values()))
    work = [(path, recipes[path], own) for path, own in paths.items()]
    with tqdm(total=total, unit="scene", desc="rendering") as bar:
        for _ in spread(partial(renderer, settings, sample), work, settings.ray):
            bar.update()
        bar.update(total - bar.n)  # what was there
    log.info("%d shards in %s", len(paths), settings.out)
    return list(paths)


def renderer(settings: StoreSettings, sample: Sampler) -> Callable[[Iterable[Work]], Iterator[int]]:
    """What renders shards that are not there; it gives the seed of every scene that is ready."""

    def make(seed: int) -> Rendered:
        batch = render([sample(seed, settings)], settings, settings.device)
        rows = {name: value.cpu().numpy() for name, value in vars(batch).items() if name != "facts"}
        arrays = {name: np.packbits(rows[name], axis=-1) for name in PACKED}
        arrays["instances_u8"] = rows["instances"].astype(np.uint8)
        for name in ("image", "without", "reference"):
            colours_u8 = np.round(rows[f"{name}_01"] * 255).astype(np.uint8)
            arrays[f"{name}_u8"] = np.ascontiguousarray(colours_u8.transpose(0, 2, 3, 1))
        for name in ("depth", "without_depth", "reference_depth"):
            arrays[f"{name}_u16"] = np.round(rows[f"{name}_01"] * 65535).astype(np.uint16)
        return arrays, [asdict(fact) for fact in batch.facts]

    def part(path: Path, rendered: Sequence[Rendered]) -> Path:
        return path.with_name(f".{path.stem}.{sum(len(facts) for _, facts in rendered):03d}.part")

    def drop_parts(path: Path) -> None:
        for part in path.parent.glob(f".{path.stem}.*.part"):
            part.unlink(missing_ok=True)

    def is_done(item: Work) -> bool:
        path, recipe, _ = item
        if not path.exists():
            return False
        try:
            stored = _header(path).get("recipe", "")
        except ValueError:
            log.warning("%s is damaged and is rendered again", path)
            return False
        if stored != recipe:  # results would be mixed
            raise ValueError(f"{path} was rendered with other settings; choose another --out or remove it")
        drop_parts(path)
        return True

    def render_shards_of(work: Iterable[Work]) -> Iterator[int]:
        """Render the scenes that no part holds, write the shard; a part is written every few seconds."""
        for path, recipe, seeds in taken(work, is_done, lambda item: item[0]):
            rendered, new = list[Rendered](), list[Rendered]()
            while (file := part(path, rendered)).exists() and _header(file).get("recipe") == recipe:
                rendered.append((load_file(file), _header(file)["facts"]))
            count = sum(len(facts) for _, facts in rendered)
            yield from seeds[:count]
            since = time.monotonic()
            for seed in seeds[count:]:
                new.append(make(seed))
                yield seed
                if time.monotonic() - since > PART_S:
                    write_atomic(part(path, rendered), _pack(new, recipe))
                    rendered, new, since = rendered + new, [], time.monotonic()
            write_atomic(path, _pack(rendered + new, recipe))
            drop_parts(path)

    return render_shards_of


def _pack(rendered: Sequence[Rendered], recipe: str) -> bytes:
    """One file of the scenes, in safetensors; names, relations and captions are JSON in its header."""
    most = max(arrays["amodal"].shape[1] for arrays, _ in rendered)
    for arrays, _ in rendered:
        lacking = most - arrays["amodal"].shape[1]
        arrays["amodal"] = np.pad(arrays["amodal"], ((0, 0), (0, lacking), (0, 0), (0, 0)))
    arrays = {name: np.concatenate([one[name] for one, _ in rendered]) for name in rendered[0][0]}
    facts = [fact for _, some in rendered for fact in some]
    # One entry: safetensors writes several in an order that differs from run to run.
    return save(arrays, {HEADER: json.dumps({"recipe": recipe, "facts": facts})})


class OpenShard:
    """A shard of which single scenes are read. Only `facts` is held in memory, the file is mapped."""

    def __init__(self, path: Path | str) -> None:
        self.path, self.facts = Path(path), read_facts(path)
        self._file: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_file": None}  # a worker process maps the file itself

    def array(self, name: str, rows: int | slice = slice(None)) -> np.ndarray:
        """An array of `Shard`, or some of its rows, masks unpacked."""
        if self._file is None:
            self._file = safe_open(self.path, "numpy")
        values = self._file.get_slice(name)[rows]
        if name not in PACKED:
            return values
        width = self._file.get_slice(PACKED[name]).get_shape()[2]
        return np.unpackbits(values, axis=-1, count=width).astype(bool)


def read_shard(path: Path | str, rows: slice = slice(None)) -> Shard:
    """A shard, or some of its scenes, masks unpacked. ValueError names a file that is missing or damaged."""
    shard = OpenShard(path)
    names = [field.name for field in fields(Shard) if field.name != "facts"]
    return Shard(**{name: shard.array(name, rows) for name in names}, facts=shard.facts[rows])


def read_facts(path: Path | str) -> tuple[SceneFacts, ...]:
    """What is known about the scenes of a shard, without its images. ValueError as of `read_shard`."""
    facts = _header(path).get("facts")
    if facts is None:
        raise ValueError(f"{path} is not a complete shard of rendered scenes: it has no {HEADER!r}")
    return tuple(SceneFacts(**{name: _as_tuples(value) for name, value in fact.items()}) for fact in facts)


def read_options(path: Path | str) -> SceneOptions:
    """The options with which the scenes of a shard were sampled and rendered."""
    options = json.loads(_header(path)["recipe"])["options"]
    return SceneOptions(**{name: _as_tuples(value) for name, value in options.items()})


def _header(path: Path | str) -> dict[str, Any]:
    """The JSON of a shard, empty in a safetensors file of another kind. ValueError names a damaged file."""
    wrong = f"{path} is not a complete shard of rendered scenes"
    with named_failure(wrong, SafetensorError, OSError), safe_open(path, "numpy") as shard:
        return json.loads((shard.metadata() or {}).get(HEADER, "{}"))


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


COLUMNS = ("scene", "one solid removed", "inverse depth", "instances", "amodal mask", "reference")
TINTS = np.array([  # room, then solids
    (214, 210, 202), (228, 26, 28), (55, 126, 184), (77, 175, 74), (152, 78, 163),
    (255, 127, 0), (240, 200, 40), (166, 86, 40), (247, 129, 191), (90, 190, 190),
], np.uint8)  # fmt: skip


def write_scene_sheet(settings: SheetSettings) -> Path:
    """Write a labelled contact sheet of evaluation scenes."""
    options = replace(settings, reference_size=(settings.size[0], settings.size[0]))
    scenes = [sample_scene(eval_seed(settings.first_seed + i), options) for i in range(settings.count)]
    batch = render(scenes, options, settings.device)
    rows, captions = [], []
    for index, fact in enumerate(batch.facts):
        removed, image = fact.removed, from_01(batch.image_01[index])
        outline = (image * 0.35 + 160 * 0.65).astype(np.uint8)
        outline[batch.amodal[index, removed].cpu().numpy()] = (255, 160, 60)
        outline[batch.visible[index, removed].cpu().numpy()] = (40, 120, 220)
        gray = (batch.depth_01[index] * 255).round().byte().cpu().numpy()
        depth = cv2.applyColorMap(gray, cv2.COLORMAP_INFERNO)[..., ::-1]
        label = batch.instances[index].cpu().numpy()
        tint = TINTS[np.where(label > 0, 1 + (label - 1) % (len(TINTS) - 1), 0)]
        instances = (tint * (0.55 + 0.45 * image.mean(-1, keepdims=True) / 255)).astype(np.uint8)
        without, reference = from_01(batch.without_01[index]), from_01(batch.reference_01[index])
        rows.append([image, without, depth, instances, outline, reference])
        d, far, near = fact.depths[removed]
        words = fact.captions[0] if fact.captions else fact.names[removed]
        seen = f"depth {d:.2f} ({far:.2f} to {near:.2f}), {100 * fact.visible[removed]:.0f} % visible"
        view = "same pose" if fact.same_pose else "another view"
        captions.append(f"{words}; {seen}; reference: {view}, another lamp")
    sheet_u8 = grid(rows, COLUMNS, captions, cell=max(settings.size))
    write_result({settings.out: encode_png(sheet_u8)}, settings.overwrite)
    logging.getLogger(__name__).info("wrote %s", settings.out)
    return settings.out


def from_01(image_01: Tensor) -> np.ndarray:
    """(3, h, w) in [0, 1] -> RGB (h, w, 3) uint8, rounded."""
    return (image_01 * 255).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
