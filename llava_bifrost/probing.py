"""Questions to a locator whose training is not documented, and what its answers tell about it."""

import logging
import re
from collections import Counter
from dataclasses import replace
from itertools import cycle, product
from typing import Any

import numpy as np

from ldm.files import json_bytes, visible_files
from ldm.images import read_image
from ldm.mllm.model import ChatExample
from ldm.mllm.templates import LLAVAS, TEMPLATES
from ldm.result import write_result
from llava_bifrost.build_dataset.records import IMAGE
from llava_bifrost.language.instruction import FORMATS
from llava_bifrost.locator import Locator, load_locator
from llava_bifrost.settings import ProbeSettings
from llava_bifrost.worlds.world import SHAPE_NAMES

log = logging.getLogger(__name__)

PHOTOGRAPH = (".jpg", ".jpeg", ".png", ".webp")
NAMES = ("dog", "sofa", "vase", "table", "cat", "chair", "lamp", "bed")  # where the tokenizer knows them
PHRASES = ("behind", "on", "in front of", "to the left of")
BLIND = 0.9  # fraction of answers that are the same about another image; chosen
DEPTHS = {5: "center", 7: "maxmedmin"}  # numbers of an answer -> its format


def probe_locator(settings: ProbeSettings) -> dict[str, Any]:
    """Which format, decimals and template suit a locator? Does it answer? Does it look at the image?"""
    locator = load_locator(settings.folder, settings.device, settings.dtype, settings.load_in)
    files = [path for path in visible_files(settings.images, "**/*") if path.suffix.lower() in PHOTOGRAPH]
    if len(files) < 2:
        raise ValueError(f"images: {settings.images} holds {len(files)} images, at least 2 are needed")
    images = [read_image(path).rgb_u8 for path in files[: settings.count]]
    names = [name for name in (*NAMES, *SHAPE_NAMES) if locator.grammar.spelling_of(name) == name]
    pairs = zip(names, cycle(PHRASES), names[1:], strict=False)
    told = settings.sentences or tuple(f"Place the {a} {phrase} the {b}" for a, phrase, b in pairs)
    texts = [told[number % len(told)] for number in range(len(images))]
    templates = {None, locator.config.template, *(TEMPLATES if locator.mllm.family in LLAVAS else ())}
    rows = []
    for template, fmt in product(sorted(templates, key=str), FORMATS):
        asked = Locator(locator.mllm, replace(locator.config, template=template, format=fmt))
        questions = [asked.question(text, asked.understand(text)) for text in texts]
        # Answers without a constraint: the fraction that can be read as asked, and their decimals.
        digits, good, answers = Counter[int](), 0, asked.answer_freely(images, questions)
        for text, place in answers:
            numbers = re.findall(r"\d+(?:\.(\d+))?", text)
            if place is not None and DEPTHS.get(len(numbers)) == fmt:
                good += 1
                digits.update(len(decimals) for decimals in numbers if decimals)
        common = digits.most_common(1)[0][0] if digits else None
        read = {"parsed": round(good / len(answers), 3), "decimals": common, "example": answers[0][0]}
        rows.append({"template": template, "format": fmt, **read})
    best = max(rows, key=lambda row: row["parsed"])  # of equal ones the first
    found = {key: best[key] for key in ("template", "format", "decimals")}
    decimals = min(max(best["decimals"] or locator.config.decimals, 2), 4)
    chosen = Locator(locator.mllm, replace(locator.config, **{**found, "decimals": decimals}))
    questions = [chosen.question(text, chosen.understand(text)) for text in texts]
    half = len(images) // 2
    own, other = (
        [chosen.answer([image], [question])[0].text for image, question in zip(shown, questions, strict=True)]
        for shown in (images, images[half:] + images[:half])
    )
    same = float(np.mean([a == b for a, b in zip(own, other, strict=True)]))
    report = {
        "locator": settings.folder.as_posix(),
        "images": len(images),
        "suits": found,
        "configured": {key: getattr(locator.config, key) for key in found},
        "parsed": best["parsed"],
        "same_answer_about_another_image": round(same, 3),
        "blind": same >= BLIND,
        "token_parity": token_parity(chosen, texts[0]),
        "asked": rows,
        "examples": own[:4],
    }
    text = "suits: template %s, format %s, decimals %s; %.0f %% of its free answers can be read"
    log.info(text, *found.values(), 100 * best["parsed"])
    if best["parsed"] and found != report["configured"]:
        log.warning("its locator.json says otherwise: %s", report["configured"])
    if report["blind"]:
        log.warning("%.0f %% of the answers are the same about another image: it does not look", 100 * same)
    if report["token_parity"] is False:
        log.warning("the tokens around the image are not those of the original code: answers may suffer")
    if settings.out is not None:
        write_result({settings.out: json_bytes(report)}, settings.overwrite)
    return report


def token_parity(locator: Locator, text: str) -> bool | None:
    """Whether image and text have the tokens that LLaVA's own code gives them; None for other families.

    It splits the text at the image and tokenises the parts by themselves: a line break after the image is
    preceded by the blank that sentencepiece puts before a text (29871 and 13 in LLaMA's vocabulary).
    """
    if locator.mllm.family not in LLAVAS:
        return None
    ask = ChatExample(np.zeros((8, 8, 3), np.uint8), locator.question(text, locator.understand(text)))
    parts, tokenizer = locator.chat.text(ask).split(IMAGE), locator.chat.tokenizer
    image = int(locator.mllm.processor.image_token_id)
    original = tokenizer(parts[0])["input_ids"]
    for part in parts[1:]:
        original = [*original, image, *tokenizer(part, add_special_tokens=False)["input_ids"]]
    ours = locator.chat.prompts([ask])["input_ids"][0].tolist()
    runs = zip(ours, [None, *ours], strict=False)  # of one image token each
    return [token for token, before in runs if not token == before == image] == original
