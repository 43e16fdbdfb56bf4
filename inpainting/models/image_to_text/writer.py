"""Write a prompt for every mask of an image with a vision-language model that sees what is around the masks.

    writer = PromptWriter.load("assets/tiny/prompter")
    prompts = writer.write([image_u8], [[mask_a, mask_b]])[0]

Legend: b questions of a batch, h w pixels, t tokens.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inpainting.data.steps.describe import continuation, open_model
from inpainting.models.image_to_text.settings import RELEASED, TINY, Decoding
from inpainting.prompts import (
    CONFIG_FILE,
    SPACED_TAG,
    TEMPLATE,
    PrompterConfig,
    Query,
    pattern_of,
    queries_for,
)
from ldm.files import located, read_json
from ldm.metrics.backbones import hash_of
from ldm.mllm.constrain import ConstrainedChoice, FiniteScores, Grammar, generate, to_device
from ldm.mllm.model import Chat, ChatExample, Mllm
from ldm.mllm.templates import LLAVAS, TEMPLATES
from ldm.mllm.training import ADAPTER_CONFIG, load_adapter
from ldm.registry.models import how_to_get, local_or_hub_folder, resolve_model_path
from ldm.settings.config import read_config

log = logging.getLogger(__name__)

DEFAULTS = PrompterConfig()
RULES = 32  # compiled expressions in memory; one takes some megabytes for a large vocabulary (chosen)
LONGEST_ANSWER = 512  # tokens (published)
GREEDY = Decoding()


@dataclass(frozen=True)
class WriterFiles:
    model: Path
    adapter: Path | None
    config: PrompterConfig


def find_files(folder: Path | str | None = None, adapter: Path | str | None = None) -> WriterFiles:
    """The parts of a prompt writer, without loading weights.

    folder: of a model, or its hub name; or of an adapter, which names its model itself; None: the released
    adapter where it is there, else the small model of the bundle. adapter: added to the model; its config
    counts where both have one.
    """
    if folder is None:
        released = resolve_model_path(RELEASED)
        folder = released if is_adapter(released) else located(TINY)
    if adapter is None and is_adapter(Path(folder)):
        adapter, path = folder, Path(folder) / ADAPTER_CONFIG
        folder = read_json(path).get("base_model_name_or_path")
        if not isinstance(folder, str) or not folder:
            raise ValueError(f"{path}: names no base_model_name_or_path; set llava_base")
        folder = base_folder(folder)
    model = local_or_hub_folder(str(folder))
    if not (model / "config.json").is_file():
        raise ValueError(f"{folder}: no prompt writer there (config.json is missing){how_to_get(folder)}")
    added = None if adapter is None else Path(adapter)
    if added is not None and not is_adapter(added):
        raise ValueError(f"{added}: no adapter there ({ADAPTER_CONFIG} is missing){how_to_get(added)}")
    configured = added if added is not None and (added / CONFIG_FILE).is_file() else model
    return WriterFiles(model, added, read_config(PrompterConfig, configured / CONFIG_FILE, DEFAULTS))


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def base_folder(name: str) -> str:
    """The model that an adapter names: its hub name, or where the registry put the files of that name."""
    local = resolve_model_path(Path("models") / name.rpartition("/")[2])
    return str(local) if not Path(name).is_dir() and (local / "config.json").is_file() else name


class PromptWriter:
    def __init__(self, mllm: Mllm, config: PrompterConfig = DEFAULTS, adapter: Path | None = None) -> None:  # noqa: B008
        self.mllm, self.config, self.adapter = mllm, config, adapter
        template = config.template or (TEMPLATE if mllm.family in LLAVAS else "")
        self.chat = Chat(mllm.processor, TEMPLATES[template] if template else None)  # else its own
        self.grammar = Grammar(mllm.processor.tokenizer, RULES)

    @classmethod
    def load(
        cls, folder: Path | str | None = None, adapter: Path | str | None = None, device: str = "auto",
        dtype: str = "auto", precision: str = "full",
    ) -> "PromptWriter":  # fmt: skip
        """What `find_files` finds. precision: full, 4bit (as published) or auto, as in `open_model`."""
        files = find_files(folder, adapter)
        mllm = open_model(str(files.model), precision, device, dtype)
        if files.adapter is not None:
            mllm = replace(mllm, model=load_adapter(mllm.model, files.adapter).eval())
        if files.config.notice:
            log.info("%s", files.config.notice)
        return cls(mllm, files.config, files.adapter)

    def weights(self) -> dict[str, Any]:
        """SHA-256 of its weight files."""
        adapter = {} if self.adapter is None else {"adapter": hash_of(self.adapter)}
        return {"model": hash_of(self.mllm.folder), **adapter}

    def write(
        self,
        images_u8: Sequence[np.ndarray],
        masks: Sequence[Sequence[np.ndarray]],
        decoding: Decoding = GREEDY,
        batch: int = 8,
        given: Sequence[Sequence[str]] | None = None,
    ) -> list[list[str]]:
        """A prompt for each mask (h, w) bool of each image (h, w, 3), any size, in the order of the masks.

        batch: questions that go through the model together. given: prompts that are known, one per mask,
        empty where it is to be written; they stay as they are, and the model knows them when it writes.
        ValueError for masks that do not fit their image, and for more than the model knows colours.
        """
        prompts = [list(texts) for texts in given or [[""] * len(of_image) for of_image in masks]]
        queries: list[tuple[int, Query]] = []
        for image, (image_u8, of_image) in enumerate(zip(images_u8, masks, strict=True)):
            about = queries_for(self.config, image_u8, of_image, prompts[image])
            queries += [(image, query) for query in about]
        size = 1 if decoding.temperature else batch
        for start in range(0, len(queries), size):
            group = queries[start : start + size]
            answers = self.answer([query for _, query in group], decoding)
            for (image, query), answer in zip(group, answers, strict=True):
                for mask, prompt in query.read(answer).items():
                    prompts[image][mask] = prompt
        return prompts

    def answer(self, queries: Sequence[Query], decoding: Decoding = GREEDY) -> list[str]:
        """The answers to b questions, as one batch."""
        prompts = self.chat.prompts([ChatExample(query.image_u8, query.question) for query in queries])
        length = prompts["input_ids"].shape[1]
        if not decoding.constrained:
            return self._free(prompts, queries, decoding.longest or LONGEST_ANSWER)
        longest = decoding.longest or self.config.longest
        patterns = [self._pattern(query) for query in queries]
        choice = TagChoice(self.grammar, patterns, length, longest, decoding)
        # Tags and known texts may be spelled letter by letter, and a letter that is cut may need more bytes.
        pairs = zip(patterns, queries, strict=True)
        most = max(len(form.encode()) + (longest + 4) * max(1, len(query.tags)) for form, query in pairs)
        answers = generate(self.mllm, prompts, choice, most)
        return [SPACED_TAG.sub(r"<\1\2>", answer.text) for answer in answers]

    def _pattern(self, query: Query) -> str:
        """The expression of an answer; a given prompt that the tokenizer cannot spell stays open."""
        texts = []
        for given in query.given if query.tags else ():
            text = " ".join(re.sub(r"[<>\x00-\x1f\x7f-\x9f]", " ", given).split())  # one line, no brackets
            texts.append(self._spelled(text) if text else "")
            if text and not texts[-1]:
                log.info("%s cannot read the given prompt %r and writes without it", self.config.name, text)
        return pattern_of(query.tags, texts)

    def _spelled(self, text: str) -> str:
        """A given prompt as tokens spell it between two tags; empty where they cannot: an unknown word."""
        spelled = self.grammar.spelling_of(text)
        if re.sub(r"\W", "", spelled) != re.sub(r"\W", "", text):
            return ""
        try:
            self.grammar.rule(pattern_of([self.config.colors[0]], [spelled]))
        except ValueError:
            return ""
        return spelled

    def _free(self, prompts: dict[str, Any], queries: Sequence[Query], longest: int) -> list[str]:
        """As published: the most probable tokens up to the last closing tag, or to a full stop."""
        length, tokenizer = prompts["input_ids"].shape[1], self.mllm.processor.tokenizer
        ends = [f"</{query.tags[-1]}>" if query.tags else "." for query in queries]

        def ended(input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
            texts = tokenizer.batch_decode(input_ids[:, length:], skip_special_tokens=True)
            done = [end in text for end, text in zip(ends, texts, strict=True)]
            return torch.tensor(done, device=input_ids.device)

        inputs = to_device(prompts, self.mllm.device, self.mllm.dtype)
        rules = {"logits_processor": [FiniteScores()], "stopping_criteria": [ended]}
        with torch.inference_mode():
            written = self.mllm.model.generate(**inputs, **rules, max_new_tokens=longest, do_sample=False)
        return [continuation(tokenizer, row, length) for row in written.cpu()]


class TagChoice(ConstrainedChoice):
    """`ConstrainedChoice` whose rows have the form of `patterns`; a tag is closed after `longest` tokens."""

    def __init__(
        self, grammar: Grammar, patterns: Sequence[str], prompt: int, longest: int, decoding: Decoding
    ) -> None:
        super().__init__(grammar, patterns, prompt)
        if decoding.temperature:
            self.greedy, self.temperature = 0, decoding.temperature
            self.generator = torch.Generator().manual_seed(decoding.seed)
        self.longest, self.rules = longest, [grammar.rule(pattern) for pattern in patterns]
        self._tensor = lru_cache(maxsize=None)(self._allowed_tensor)

    def allowed(self, row: int, tokens: list[int]) -> Tensor:
        """The tokens (n,) that may follow; only those that close the tag once its text is long enough."""
        texts = (self.grammar.spelled.get(token, b"") for token in reversed(tokens))
        after_tag = next((count for count, text in enumerate(texts) if b">" in text), len(tokens))
        return self._tensor(row, self.rules[row].walk(tokens), after_tag >= self.longest)

    def _allowed_tensor(self, row: int, state: int | None, full: bool) -> Tensor:
        tokens = [] if state is None else self.rules[row].allowed(state)
        if not tokens:
            raise ValueError(f"no token continues the answer of form {self.forms[row]}")
        # These begin the closing tag, or end an answer without tags.
        closing = [x for x in tokens if full and (x == self.grammar.end or b"<" in self.grammar.spelled[x])]
        return torch.tensor(closing or tokens)
