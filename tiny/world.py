"""The rendered world as the small networks learn it: its words, their tokenizers, its scenes as arrays."""

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

from datasets.scenes.palette import COLOURS, PATTERN_WORDS, SHAPES
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
