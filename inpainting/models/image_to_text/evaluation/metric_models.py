"""Networks that measure prompts: local folders, each with its hashes; a missing one is skipped by name.

Legend: b texts, t tokens, d features.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import einsum
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import trange
from transformers import AutoModel, AutoTokenizer

from inpainting.models.image_to_text.evaluation.predictions import Prediction
from inpainting.models.image_to_text.settings import MetricFolders
from ldm.checkpoints import load_pretrained
from ldm.files import read_json
from ldm.metrics.backbones import MetricNetworks
from ldm.metrics.clip import Clip

log = logging.getLogger(__name__)

IMAGE_OF = "An image of {}"  # published text for a region's own image
AT_ONCE = 32  # texts or crops of one forward pass
MOST_TOKENS = 512  # RoBERTa's positions
BERTSCORE = ("bertscore_precision", "bertscore_recall", "bertscore_f1")
CLIPSCORE = "clipscore"


class BertScore:
    """Greedy matching of the tokens of two texts in a language model's last layer (Zhang et al. 2020)."""

    def __init__(self, model: Any, tokenizer: Any, device: torch.device | str = "cpu") -> None:
        self.model, self.tokenizer, self.device = model.eval().to(device), tokenizer, torch.device(device)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> BertScore:
        """A `save_pretrained` folder with its tokenizer."""
        read_json(folder / "config.json")
        model = load_pretrained(AutoModel, folder, may_lack="pooler", local_files_only=True)
        return cls(model, AutoTokenizer.from_pretrained(folder, local_files_only=True), device)

    @torch.inference_mode()
    def score(self, rows: Sequence[Prediction]) -> list[tuple[float, float, float]]:
        """(precision, recall, f1) of each prediction with its caption."""
        scores: list[tuple[float, float, float]] = []
        for start in trange(0, len(rows), AT_ONCE, desc="BERTScore", disable=None):
            group = rows[start : start + AT_ONCE]
            predicted, counted = self._tokens([row.prediction.lower() for row in group])
            true, true_counted = self._tokens([row.caption.lower() for row in group])
            cosines = einsum(predicted, true, "b s d, b t d -> b s t")
            precision = (cosines.amax(2) * counted).sum(1) / counted.sum(1).clamp(min=1)
            recall = (cosines.amax(1) * true_counted).sum(1) / true_counted.sum(1).clamp(min=1)
            both = precision + recall
            f1 = torch.where(both == 0, 0.0, 2 * precision * recall / both)
            scores += [tuple(triple) for triple in torch.stack((precision, recall, f1), 1).tolist()]
        return scores

    def _tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(b, t, d) of length 1, or 0 where a token does not count, and (b, t) which do.

        The first and the last token of a text, which frame it, do not count.
        """
        limit = min(MOST_TOKENS, self.tokenizer.model_max_length)
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
        ).to(self.device)
        mask = tokens["attention_mask"]
        states = self.model(tokens["input_ids"], mask, output_hidden_states=True).hidden_states[-1]
        counted = mask.clone()
        counted[:, 0] = 0
        counted[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1] = 0
        return F.normalize(states.float(), dim=-1) * counted[..., None], counted


@dataclass
class PromptMetricModels(MetricNetworks):
    """The networks that were found."""

    clip: Clip | None = None
    roberta: BertScore | None = None

    @classmethod
    def load(cls, folders: MetricFolders, device: torch.device | str = "cpu") -> PromptMetricModels:
        """Every network whose folder is there and sound."""
        models = cls()
        models.clip = models.get("clip", folders.clip, lambda path: Clip.load(path, device))
        models.roberta = models.get("roberta", folders.roberta, lambda path: BertScore.load(path, device))
        return models

    def source(self, name: str) -> str:
        """The network of a metric and its folder."""
        network = "clip" if name == CLIPSCORE else "roberta"
        return f"{network} {self.used.get(network, {}).get('path', '')}".strip()

    def numbers(self, rows: Sequence[Prediction]) -> tuple[list[dict[str, float]], dict[str, str]]:
        """The networks' numbers of each row, and metric -> why it was left out."""
        numbers: list[dict[str, float]] = [{} for _ in rows]
        skipped = {}
        if self.clip is None:
            skipped[CLIPSCORE] = "clip: " + self.skipped.get("clip", "no network was given")
        elif unseen := next((row for row in rows if not row.shown), None):
            skipped[CLIPSCORE] = f"{unseen.stem} {unseen.region} has neither `crop` nor `image` and `box`"
        else:
            cosines: list[float] = []
            try:  # cosine of "An image of PREDICTION" and the region's image, squeezed to a square
                for start in trange(0, len(rows), AT_ONCE, desc="CLIPSim", disable=None):
                    group = rows[start : start + AT_ONCE]
                    images = self.clip.images([row.read_crop() for row in group])
                    texts = self.clip.texts([IMAGE_OF.format(row.prediction.lower()) for row in group])
                    cosines += (images * texts).sum(1).tolist()
                numbers = [{CLIPSCORE: cosine} for cosine in cosines]
            except ValueError as error:  # an image that was moved shall not cost the other numbers
                skipped[CLIPSCORE] = str(error)
                log.warning("skipped: %s: %s", CLIPSCORE, error)
        if self.roberta is None:
            why = "roberta: " + self.skipped.get("roberta", "no network was given")
            skipped |= dict.fromkeys(BERTSCORE, why)
        else:
            for row_numbers, scores in zip(numbers, self.roberta.score(rows), strict=True):
                row_numbers |= zip(BERTSCORE, scores, strict=True)
        return numbers, skipped
