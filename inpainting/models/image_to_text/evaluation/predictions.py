"""Predicted prompts as a file: one JSON object a line, one line per masked region.

    {"stem": "monet_haystacks", "region": "mask_0", "color": "red", "last": true, "root": "haystacks",
     "prediction": "two haystacks", "caption": "two haystacks in the evening sun",
     "crop": "data/mm_inp_dataset/entities/monet_haystacks/mask_0.png"}

`crop`, the region's own image (published for CLIPSim), and `color` may be absent. The networks that measure
prompts lie in local folders. Legend: b texts, t tokens, d features.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from einops import einsum
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import trange
from transformers import AutoModel, AutoTokenizer

from inpainting.models.image_to_text.settings import MetricFolders
from ldm.checkpoints import load_pretrained
from ldm.files import named_failure, numbered_lines, read_json
from ldm.images import read_image
from ldm.journal import parse_line
from ldm.metrics.backbones import MetricNetworks
from ldm.metrics.clip import Clip

IMAGE_OF = "An image of {}"  # published text for a region's own image
AT_ONCE = 32  # texts or crops of one forward pass
MOST_TOKENS = 512  # RoBERTa's positions
BERTSCORE = ("bertscore_precision", "bertscore_recall", "bertscore_f1")
CLIPSCORE = "clipscore"


@dataclass(frozen=True)
class Prediction:
    """The prediction for one region, and its ground truth."""

    stem: str
    region: str  # name of the entity: mask_0, mask_1, ...
    prediction: str
    caption: str  # the true description
    root: str  # root of the first noun chunk of the true concept
    last: bool  # the region that the model described last
    color: str = ""
    crop: str = ""  # path of the region's own image, DATA/entities/STEM/REGION.png

    def __post_init__(self) -> None:
        if not self.stem or not self.region:
            raise ValueError("`stem` and `region` must not be empty")
        if not self.root.strip():
            wrong = "`root` is empty; `python -m inpainting.data.ops extract-noun-chunk-roots`"
            raise ValueError(f"{wrong} finds noun roots")

    @classmethod
    def from_line(cls, line: str) -> "Prediction":
        if line[:1].isdigit() and "\t" in line:
            wrong = "the published predictions.txt numbers its lines within each batch and names no image"
            way = "run the test configuration again, it writes predictions.jsonl"
            raise ValueError(f"{wrong}, so it cannot be measured; {way}")
        values = parse_line(line)
        texts = {name: values.get(name) for name in ("stem", "region", "prediction", "caption", "root")}
        texts |= {name: values.get(name) or "" for name in ("color", "crop")}
        for name, value in texts.items():
            if not isinstance(value, str):
                raise ValueError(f"`{name}` must be a text, got {value!r}")
        last = values.get("last")
        if not isinstance(last, bool):
            raise ValueError(f"`last` must be true or false, got {last!r}")
        return cls(**texts, last=last)  # type: ignore[arg-type]

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def read_predictions(path: Path) -> list[Prediction]:
    """All rows of a file; ValueError names the file, the line and the key."""
    rows = []
    for number, line in numbered_lines(path):
        with named_failure(f"{path}:{number}", ValueError):
            rows.append(Prediction.from_line(line))
    if not rows:
        raise ValueError(f"{path} holds no prediction")
    for (stem, region), count in Counter((row.stem, row.region) for row in rows).items():
        if count > 1:
            raise ValueError(f"{path}: {stem} {region} is there twice; a file holds one run")
    for stem, count in Counter(row.stem for row in rows if row.last).items():
        if count > 1:
            raise ValueError(f"{path}: {stem} has two regions with `last`")
    return rows


class BertScore:
    """Greedy matching of the tokens of two texts in a model's last layer (Zhang et al. 2020)."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        read_json(folder / "config.json")
        self.model = load_pretrained(AutoModel, folder, may_lack="pooler", local_files_only=True).to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.device = torch.device(device)

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
        """(b, t, d) of length 1, or 0 where a token does not count, as first and last do not; and (b, t)."""
        limit = min(MOST_TOKENS, self.tokenizer.model_max_length)
        how = {"padding": True, "truncation": True, "max_length": limit, "return_tensors": "pt"}
        tokens = self.tokenizer(list(texts), **how).to(self.device)
        mask = tokens["attention_mask"]
        states = self.model(tokens["input_ids"], mask, output_hidden_states=True).hidden_states[-1]
        counted = mask.clone()
        counted[:, 0] = 0
        counted[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1] = 0
        return F.normalize(states.float(), dim=-1) * counted[..., None], counted


@dataclass
class PromptMetricModels(MetricNetworks):
    clip: Clip | None = None
    roberta: BertScore | None = None

    @classmethod
    def load(cls, folders: MetricFolders, device: torch.device | str = "cpu") -> "PromptMetricModels":
        models = cls()
        models.clip = models.get("clip", folders.clip, lambda path: Clip.load(path, device))
        models.roberta = models.get("roberta", folders.roberta, lambda path: BertScore(path, device))
        return models

    def source(self, name: str) -> str:
        network = "clip" if name == CLIPSCORE else "roberta"
        return f"{network} {self.used.get(network, {}).get('path', '')}".strip()

    def numbers(self, rows: Sequence[Prediction]) -> tuple[list[dict[str, float]], dict[str, str]]:
        """The networks' numbers of each row, and metric -> why it was left out."""
        numbers: list[dict[str, float]] = [{} for _ in rows]
        skipped = {}
        if self.clip is None:
            skipped[CLIPSCORE] = "clip: " + self.skipped.get("clip", "no network was given")
        elif unseen := next((row for row in rows if not row.crop), None):
            skipped[CLIPSCORE] = f"{unseen.stem} {unseen.region} has no `crop`"
        else:
            cosines: list[float] = []
            try:  # cosine of "An image of PREDICTION" and the region's image, squeezed to a square
                for start in trange(0, len(rows), AT_ONCE, desc="CLIPSim", disable=None):
                    group = rows[start : start + AT_ONCE]
                    images = self.clip.images([read_image(Path(row.crop)).rgb_u8 for row in group])
                    texts = self.clip.texts([IMAGE_OF.format(row.prediction.lower()) for row in group])
                    cosines += (images * texts).sum(1).tolist()
                numbers = [{CLIPSCORE: cosine} for cosine in cosines]
            except ValueError as error:  # an image that was moved shall not cost the other numbers
                skipped[CLIPSCORE] = str(error)
                logging.getLogger(__name__).warning("skipped: %s: %s", CLIPSCORE, error)
        if self.roberta is None:
            why = "roberta: " + self.skipped.get("roberta", "no network was given")
            skipped |= dict.fromkeys(BERTSCORE, why)
        else:
            for row_numbers, scores in zip(numbers, self.roberta.score(rows), strict=True):
                row_numbers |= zip(BERTSCORE, scores, strict=True)
        return numbers, skipped
