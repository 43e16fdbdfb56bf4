"""Which keys of a checkpoint may stay unused, and the error about all others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cldm.convert.keys import Piece
from ldm.weight_files import Shape, WeightFile

DEAD: dict[str, re.Pattern[str]] = {
    "noise schedule, computed anew": re.compile(
        r"betas|logvar|lvlb_weights|(?:sqrt_|sqrt_one_minus_|log_one_minus_|sqrt_recip_|sqrt_recipm1_)?"
        r"alphas_cumprod|alphas_cumprod_prev|posterior_(?:variance|log_variance_clipped|mean_coef[12])"
    ),
    "text encoder, replaced by DINOv2": re.compile(
        r"cond_stage_model\.model\.(?:positional_embedding|text_projection|logit_scale|attn_mask"
        r"|(?:token_embedding|ln_final|transformer)\..+)"
    ),
    "moving averages and their counters": re.compile(r"model_ema\..+"),
    "first convolution of a control branch, never used": re.compile(
        r"control_model(?:_detail|_depth)?\.input_blocks\.0\.0\.(?:weight|bias)"
    ),
    "classifier of the depth network's pre-training": re.compile(r"pretrained\.model\.head\.(?:weight|bias)"),
}


@dataclass(frozen=True)
class Origin:
    """Where one weight of ours comes from.

    how: file (its own weight), copy (the UNet's weight), zero, fresh (initialised from the seed).
    """

    how: str
    shape: Shape
    source: WeightFile | None = None
    key: str = ""
    index: int = 0
    of: int = 1
    positions: bool = False  # interpolate the position embedding


class Problems:
    """What a plan takes from a file, and everything that does not fit, told at once."""

    def __init__(self, file: WeightFile) -> None:
        self.file = file
        self.used: set[str] = set()
        self.allowed: set[str] = set()
        self.missing: list[str] = []
        self.misshapen: list[str] = []

    def allow(self, keys: Iterable[str]) -> None:
        """Keys that may stay unused although they are not on the dead list."""
        self.allowed.update(keys)

    def take(
        self, prefix: str, piece: Piece, shape: Shape, *, how: str = "file", positions: bool = False
    ) -> Origin:
        """The origin of a weight of `shape`; a missing or mis-shaped key is noted for the error."""
        key = prefix + piece.key
        self.used.add(key)
        got = self.file.shapes.get(key)
        if got is None:
            self.missing.append(key)
            return Origin(how, shape)
        wanted = (shape[0] * piece.of, *shape[1:])
        resized = positions and got != shape
        square = resized and len(got) == 3 and (got[1] - 1) == round((got[1] - 1) ** 0.5) ** 2
        fits = got in (wanted, (*wanted, 1, 1)) or (square and got[2] == shape[2])
        if not fits:
            self.misshapen.append(f"{key} has shape {got}, needs {wanted}")
        return Origin(how, shape, self.file, key, piece.index, piece.of, positions=resized)

    def finish(self, dead: Mapping[str, list[str]]) -> None:
        """Raise one ValueError about everything that does not fit."""
        known = self.used.union(*dead.values()) if dead else self.used
        unknown = sorted(set(self.file.shapes) - known)
        notes = []
        for label, keys in (("missing", self.missing), ("wrong shape", self.misshapen), ("unknown", unknown)):
            if keys:
                notes.append(f"{len(keys)} {label}: {', '.join(keys[:3])}")
        if notes:
            raise ValueError(f"{self.file.path}: {'; '.join(notes)}{advice(self.file)}")


def dead_of(problems: Problems) -> dict[str, list[str]]:
    """The keys that are known to be useless, by reason."""
    dead: dict[str, list[str]] = {reason: [] for reason in DEAD}
    for key in problems.file.shapes:
        if key in problems.used:
            continue
        reason = next((reason for reason, pattern in DEAD.items() if pattern.fullmatch(key)), None)
        if reason:
            dead[reason].append(key)
        elif key in problems.allowed:
            dead.setdefault("DINOv2 inside the file, another source was named", []).append(key)
    return {reason: keys for reason, keys in dead.items() if keys}


def advice(file: WeightFile) -> str:
    """What kind of checkpoint this looks like, for the end of an error."""
    starts = Counter(key.split(".")[0] for key in file.shapes)
    kinds = {
        "control_model_detail": "a Bifrost checkpoint (verb bifrost)",
        "control_model": "an AnyDoor or single-control checkpoint (verb anydoor)",
        "model": "a Stable Diffusion checkpoint (verb sd21)",
        "blocks": "a DINOv2 file (verb dinov2)",
        "pretrained": "a DPT file (verb dpt)",
    }
    looks = next((text for start, text in kinds.items() if starts[start]), None)
    return f". It looks like {looks}" if looks else ""
