"""The rendered world as the small networks learn it: its words, their tokenizers, its scenes as arrays, and
as inpainting examples: boxes over solids, each with the words for what stands there.

Masks are boxes, as in the paper's data. Furniture is never masked: it fills too much of the image.
Legend: n scenes, b batch, r regions, h w pixels.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from einops import reduce
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tqdm.auto import tqdm
from transformers import CLIPTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from datasets.geometry import Box, bbox_of_mask, clip_box, mask_of_box
from datasets.scenes.batch import SceneFacts
from datasets.scenes.palette import COLOURS, PATTERN_WORDS, SHAPES
from datasets.scenes.settings import EVAL_BIT
from datasets.scenes.store import OpenShard, read_facts
from datasets.sources.rendered import shard_files
from ldm.files import full_disk_named, read_json, write_json

T = TypeVar("T")

COLOUR_WORDS, SHAPE_WORDS = tuple(COLOURS), tuple(SHAPES)
KINDS = (*SHAPE_WORDS, "table", "platform")  # last words of names, which the vision stages tell apart
PATTERN_NAMES = tuple(PATTERN_WORDS.values())  # "" is one of them
PATTERNED = tuple(filter(None, PATTERN_NAMES))
OTHER_WORDS = ("a", "an", "and", "the", "of", "object")
PATTERN_PARTS = " ".join(PATTERNED).replace("-", " - ").split()
ONE_TOKEN = sorted({*COLOUR_WORDS, *SHAPE_WORDS, *PATTERN_PARTS, *OTHER_WORDS})
LENGTH = 77  # tokens of a prompt of the small inpainter
PAD, BEGIN, END, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
SPECIAL = (PAD, BEGIN, END, UNKNOWN, IMAGE)  # the first words of the vocabularies of the small LLaVAs


@dataclass(frozen=True)
class Name:
    """A solid in words, such as "diagonally striped red cone"; `pattern` is empty for one colour."""

    pattern: str
    colour: str
    shape: str

    @property
    def text(self) -> str:
        return " ".join(word for word in (self.pattern, self.colour, self.shape) if word)


def read_name(text: str) -> Name | None:
    """The parts of a solid's name; None when it has no colour and shape (a table)."""
    *pattern, colour, shape = ["", "", *text.split()][-max(2, len(text.split())) :]
    if colour not in COLOURS or shape not in SHAPES:
        return None
    return Name(" ".join(word for word in pattern if word), colour, shape)


def caption_of(name: Name) -> str:
    """The prompt of a mask: "an orange egg", "a striped red cone"."""
    return f"{'an' if name.text[0] in 'aeiou' else 'a'} {name.text}"


def make_tokenizer() -> CLIPTokenizer:
    """The tokenizer of the small inpainter: 77 tokens, padded like Stable Diffusion 2 (byte 0).

    The vocabulary has CLIP's structure (256 bytes, the same with an end-of-word mark, merges, begin, end):
    every word of the world is one token, any other falls apart into letters. The most frequent pair over all
    words is merged first, as in training such a vocabulary; ties are broken by spelling.
    """
    spelled = [" ".join(word) + "</w>" for word in ONE_TOKEN]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for text in spelled for pair in pairwise(text.split())):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        both = re.compile(rf"(?<!\S){re.escape(' '.join(best))}(?!\S)")
        spelled = [both.sub("".join(best), text) for text in spelled]
    letters, begin, end = list(bytes_to_unicode().values()), "<|startoftext|>", "<|endoftext|>"
    pieces = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), begin, end]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, unk_token=end, bos_token=begin, eos_token=end, pad_token="!",
        model_max_length=LENGTH)  # fmt: skip


def word_tokenizer(
    vocabulary: Sequence[str], pieces: str, decoder: decoders.Decoder, template: str, begins: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words; every word outside the vocabulary becomes `<unk>`.

    pieces: regular expression of what is a token; begins: a text without the template begins with `<s>` too
    """
    numbers = {word: index for index, word in enumerate(vocabulary)}
    backend = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), "removed", invert=True)
    backend.decoder = decoder
    if begins:
        special = [(BEGIN, SPECIAL.index(BEGIN))]
        backend.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BEGIN, eos_token=END, unk_token=UNKNOWN, pad_token=PAD,
        additional_special_tokens=[IMAGE], chat_template=template, padding_side="left",
        model_max_length=512, clean_up_tokenization_spaces=False)  # fmt: skip


def cached_arrays(
    kind: type[T],
    folder: Path,
    recipe: dict[str, Any],
    count: int,
    files: Sequence[Path],
    arrays_of: Callable[[Path], dict[str, np.ndarray]],
) -> T:
    """Arrays of the first `count` scenes of some shards, made once in `folder` and memory-mapped from there.

    kind: a dataclass of them. recipe: what they hold; arrays_of: those of one shard, by name.
    ValueError when there are too few scenes, or the folder holds arrays of another recipe.
    """
    done = folder / "recipe.json"
    if done.exists() and read_json(done) != recipe:
        raise ValueError(f"{folder} was made from other scenes; remove it")
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        arrays, filled = dict[str, np.memmap](), 0
        for file in tqdm(files, desc="scene arrays", unit="shard"):
            if filled == count:
                break
            found, start = arrays_of(file), filled
            filled = min(count, start + len(next(iter(found.values()))))
            for name, values in found.items():
                if name not in arrays:
                    path, shape = folder / f"{name}.npy", (count, *values.shape[1:])
                    arrays[name] = np.lib.format.open_memmap(path, "w+", values.dtype, shape)
                    if hasattr(os, "posix_fallocate"):  # a mapping that finds no space later ends the process
                        with full_disk_named(path), path.open("r+b") as opened:
                            os.posix_fallocate(opened.fileno(), 0, path.stat().st_size)
                arrays[name][start:filled] = values[: filled - start]
        if filled < count:
            raise ValueError(f"{files[0].parent}: {filled} scenes, {count} are asked for")
        for array in arrays.values():
            array.flush()
        write_json(done, recipe)
    names = kind.__dataclass_fields__  # type: ignore[attr-defined]
    return kind(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names})


def pooled(maps: np.ndarray, patch: int) -> np.ndarray:
    """(n, v, h, w) -> (n, v, p) means of the patches."""
    return reduce(maps.astype(np.float32), "n v (h y) (w x) -> n v (h w)", "mean", y=patch, x=patch)


def split_scenes(count: int, held_out: int, render: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the scenes that train, and of the last `held_out`; ValueError when none is left to train.

    render: the command that makes more scenes
    """
    if held_out >= count:
        wrong = f"held_out={held_out} of {count} scenes leaves none to train"
        raise ValueError(f"{wrong}; choose a smaller held_out, or more scenes: `python -m {render}`")
    return np.arange(count - held_out), np.arange(count - held_out, count)


LEAST_VISIBLE, LEAST_SIDE, MOST_AREA = 0.6, 9, 0.4
MOST_OVERLAP = 0.3  # of the smaller box, between two masks of one example


@dataclass(frozen=True)
class Region:
    """One solid that can be masked: the box around what is visible of it, and its name."""

    box_xyxy: Box
    name: Name


@dataclass(frozen=True, eq=False)
class Views:
    """Images of whole scenes with the solids that can be masked in each; scenes with none are left out."""

    images_u8: np.ndarray  # (n, h, w, 3)
    regions: tuple[tuple[Region, ...], ...]

    def __len__(self) -> int:
        return len(self.regions)


def read_views(folder: Path, count: int | None = None) -> Views:
    """The first scenes of a folder of shards, as far as they have a solid to mask."""
    images, regions = [], list[tuple[Region, ...]]()
    for path in tqdm(shard_files(folder), desc=f"reading {folder.name}", leave=False):
        if count is not None and len(regions) >= count:
            break
        shard = OpenShard(path)
        images.append(shard.array("image_u8"))
        regions += map(regions_of, shard.array("instances_u8"), shard.facts)
    usable = [index for index, chosen in enumerate(regions[:count]) if chosen]
    if not usable:
        raise ValueError(f"{folder}: no scene has a solid to mask")
    return Views(np.concatenate(images)[usable], tuple(regions[index] for index in usable))


def regions_of(instances_u8: np.ndarray, facts: SceneFacts) -> tuple[Region, ...]:
    """Solids of one scene that are mostly visible, neither tiny nor huge. instances: (h, w)."""
    regions = []
    for index, (text, visible) in enumerate(zip(facts.names, facts.visible, strict=True)):
        name, mask = read_name(text), instances_u8 == index + 1
        if name is None or visible < LEAST_VISIBLE or not mask.any():
            continue
        box = bbox_of_mask(mask)
        if min(box[2] - box[0], box[3] - box[1]) >= LEAST_SIDE and box_area(box) <= MOST_AREA * mask.size:
            regions.append(Region(box, name))
    return tuple(regions)


def grown(box: Box, margins: Sequence[int], size: tuple[int, ...]) -> Box:
    """The box with (left, top, right, bottom) more pixels, inside an image of size (h, w)."""
    (x0, y0, x1, y1), (left, top, right, bottom) = box, margins
    return clip_box((x0 - left, y0 - top, x1 + right, y1 + bottom), (size[0], size[1]))


def overlap(first: Box, second: Box) -> float:
    """Fraction of the smaller box that the other covers."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0, width) * max(0, height) / min(box_area(first), box_area(second))


def box_area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def spread_out(regions: Sequence[Region], order: Sequence[int], most: int, margin: int = 2) -> list[Region]:
    """The first regions in `order` whose masks hardly overlap, at most `most`."""
    chosen: list[Region] = []
    size = (1 << 16, 1 << 16)
    for index in order:
        box = grown(regions[index].box_xyxy, (margin,) * 4, size)
        others = (grown(region.box_xyxy, (margin,) * 4, size) for region in chosen)
        if len(chosen) < most and all(overlap(box, other) <= MOST_OVERLAP for other in others):
            chosen.append(regions[index])
    return chosen


def box_masks(boxes: Sequence[Box], size: tuple[int, ...]) -> np.ndarray:
    """(r, h, w) bool, one mask per box in an image of size (h, w)."""
    return np.stack([mask_of_box(box, (size[0], size[1])) for box in boxes])


def refuse_training_scenes(folder: Path, module: str = "datasets.scenes render") -> None:
    """ValueError when a folder that should be held out has no scenes, or scenes with training seeds."""
    for path in shard_files(folder, f"{module} --split eval"):
        if not all(facts.seed & EVAL_BIT for facts in read_facts(path)):
            raise ValueError(f"{path} holds training scenes; render with `--split eval`")
