"""Paintings whose regions hide behind solid colours, and the answer that names what was there (paper 3.1).

Masks and colours are drawn at the image's own size.

Legend: h w pixels of the image, r masked regions, b rows of a batch, t tokens, image tokens included.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from inpainting import prompts
from inpainting.data.datasets import TRAIN, PaintingItems, within
from inpainting.data.paintings import Entity, Painting, read_entities
from inpainting.models.image_to_text.settings import AlphaOptions, LlavaOptions
from ldm.images import read_image, read_mask
from ldm.mllm.model import IGNORED, Chat, ChatExample
from ldm.seeds import seed_of

Item = Mapping[str, Any]
MAKE_ROOTS = "python -m inpainting.data.ops extract-noun-chunk-roots"


class LlavaDataset(PaintingItems):
    """The captioned images of one split, sorted by name. An item is a dict, its lists in answer order:

    PIL_images                the image
    PIL_masked_images         the image with its regions painted over
    entity_captions           r texts, the prompts to be learnt
    entity_concepts           r texts
    entity_colors             r names; the tested region, red or alone, is the last one in val and test
    entity_noun_chunk_roots   r texts
    targets                   the answer, `<red>...</red><green>...</green>`
    image_stems, entity_names, entity_paths    where they come from; the paths are those of the crops
    """

    def __init__(self, options: LlavaOptions, split: str = TRAIN, seed: int = 42) -> None:
        super().__init__(options.data_dir, split, seed)
        self.options = options
        self.tested = split != TRAIN  # one region is tested

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.with_alphas(index)

    def with_alphas(self, index: int, alphas: Sequence[float] | None = None) -> dict[str, Any]:
        """Item `index`; alphas: opacity of the masks in the order of painting, else all are 1."""
        return self.usable(index, lambda painting: self.example(painting, alphas))

    def example(self, painting: Painting, alphas: Sequence[float] | None = None) -> dict[str, Any]:
        rng, alone = self.rng_of(painting.stem), self.options.only_gray_concept
        image = read_image(painting.image)
        captioned = [entity for entity in read_entities(painting.annotations) if entity.caption is not None]
        if self.tested and any(entity.noun_chunk_root is None for entity in captioned):  # for the accuracy
            raise ValueError(f"{painting.entities}: entities without noun_chunk_root; `{MAKE_ROOTS}` adds it")
        paths = {entity: painting.masks / f"{entity.name}.png" for entity in captioned}
        masks = {entity: read_mask(path, size=image.size) for entity, path in paths.items()}
        regions, names, paints, tested = self.regions(masks, rng)
        visible = [masks[entity] for entity in regions]
        if self.options.remove_intersections:
            visible = prompts.remove_overlaps(visible)
        order = painted = list(range(len(regions)))
        if alone:
            painted = [] if tested is None else [tested]
        masked_u8 = prompts.paint_masks(
            image.rgb_u8, [visible[number] for number in painted], [paints[number] for number in painted],
            None if alphas is None else [float(alphas[number]) for number in painted], False,
        )  # fmt: skip
        if self.options.shuffle_concepts:
            order = rng.permutation(len(regions)).tolist()
        if tested is not None:  # the answer names it last, or it alone
            order = [number for number in order if number != tested] + [tested]
        order = order[-1:] if alone else order
        entities, colors = [regions[number] for number in order], [names[number] for number in order]
        captions = [str(entity.caption) for entity in entities]
        return {
            "PIL_images": Image.fromarray(image.rgb_u8), "PIL_masked_images": Image.fromarray(masked_u8),
            "entity_captions": captions, "entity_concepts": [entity.concept for entity in entities],
            "entity_colors": colors,
            "entity_noun_chunk_roots": [entity.noun_chunk_root or entity.concept for entity in entities],
            "targets": prompts.target_text(list(zip(colors, captions, strict=True))),
            "image_stems": painting.stem, "entity_names": [entity.name for entity in entities],
            "entity_paths": [painting.entities / f"{entity.name}.png" for entity in entities]}  # fmt: skip

    def regions(
        self, masks: Mapping[Entity, np.ndarray], rng: np.random.Generator
    ) -> tuple[list[Entity], list[str], list[str], int | None]:
        """The regions in the order of painting, their names, their paints, and which is tested or alone.

        masks: (h, w) bool of each candidate. Largest first, at most max_concepts, shuffled, as many from the
        front as the threshold allows, and again the largest first where there is a threshold.
        """
        options, published = self.options, self.options.bookkeeping == "published"
        entities = sorted(masks, key=lambda entity: -np.count_nonzero(masks[entity]))[: options.colors]
        palette = list(prompts.COLORS)[: options.colors]
        sampled = [palette[number] for number in rng.permutation(len(palette))[: len(entities)]]
        order = list(range(len(entities)))
        if options.shuffle_concepts:
            order = list(rng.permutation(len(entities)))
        stacked = torch.from_numpy(np.stack([masks[entities[number]] for number in order]))
        order = order[: within(stacked, options.masked_area_threshold)]
        if options.masked_area_threshold is not None:
            order.sort()  # the largest is the first of `entities`
        if not published:  # nobody can answer about a region that later paint hides
            visible = prompts.remove_overlaps([masks[entities[number]] for number in order])
            order = [number for number, mask in zip(order, visible, strict=True) if mask.any()]
        colors = [sampled[number] for number in order]
        # One held-out region is red. Published: looked for among the first colours that were sampled, before
        # regions were dropped, so that two regions may be red, or none.
        if self.tested and prompts.RED not in (sampled[: len(colors)] if published else colors):
            colors[int(rng.integers(len(colors)))] = prompts.RED
        tested = colors.index(prompts.RED) if self.tested and prompts.RED in colors else None
        paints = list(colors)
        if options.only_gray_concept:
            if not self.tested:
                tested = 0 if published else int(rng.integers(len(colors)))
            if tested is not None:
                colors[tested], paints[tested] = prompts.SINGLE[options.single_color]
        return [entities[number] for number in order], colors, paints, tested


class WithAlphas(Dataset[dict[str, Any]]):
    """Images whose masks have the opacity of the optimizer step that they belong to; see `AlphaOptions`.

    batches(epoch): the images of each batch. per_step: batches of all processes of one step
    """

    def __init__(
        self,
        dataset: LlavaDataset,
        options: AlphaOptions,
        batches: Callable[[int], list[list[int]]],
        steps: int,
        per_step: int = 1,
        seed: int = 0,
    ) -> None:
        self.dataset, self.options, self.batches = dataset, options, batches
        self.steps, self.per_step, self.seed = steps, per_step, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.dataset.set_epoch(epoch)
        batches = self.batches(epoch)
        first = epoch * math.ceil(len(batches) / self.per_step)
        numbered = ((first + number // self.per_step, batch) for number, batch in enumerate(batches))
        self.step_of = {index: step for step, batch in numbered for index in batch}

    def alphas(self, index: int) -> list[float]:
        rng = np.random.default_rng(seed_of(self.seed, "alpha", self.epoch, index))
        return self.options.alphas(self.step_of[index], self.steps, self.dataset.options.colors, rng)

    def __len__(self) -> int:
        return len(self.step_of)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset.with_alphas(index, self.alphas(index))


@dataclass(frozen=True, eq=False)
class PromptCollate:
    """Items of LlavaDataset -> what the model is given."""

    chat: Chat
    max_length: int = 512  # most tokens of an answer; longer ones lose words of their longest captions
    append_eos: bool = True  # learn to stop; off as published, where an answer ends with its last tag
    question: str | None = None  # asked instead of the one about the colours (LLaVA-Prompt)

    def __call__(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Training examples with `labels` (b, t): the answer, -100 elsewhere; padded on the right."""
        batch = self.chat.examples([self.ask(item, self.target(item)) for item in items])
        if not self.append_eos:
            for row in batch["labels"]:
                last = (row != IGNORED).nonzero()[-1]
                if int(row[last]) == self.chat.end:
                    row[last] = IGNORED
        return batch

    def ask(self, item: Item, answer: str | None = None) -> ChatExample:
        question = self.question or prompts.discover_question(item["entity_colors"])
        return ChatExample(np.asarray(item["PIL_masked_images"]), question, answer)

    def target(self, item: Item) -> str:
        colors, captions = item["entity_colors"], list(item["entity_captions"])
        while True:
            text = prompts.target_text(list(zip(colors, captions, strict=True)))
            if len(self.chat.tokenizer(text, add_special_tokens=False)["input_ids"]) <= self.max_length:
                return text
            longest = max(range(len(captions)), key=lambda number: len(captions[number].split()))
            words = captions[longest].split()
            if not words:
                wrong = f"max_length={self.max_length} has no room for the tags of {len(colors)} colours"
                raise ValueError(wrong)
            captions[longest] = " ".join(words[:-1])
