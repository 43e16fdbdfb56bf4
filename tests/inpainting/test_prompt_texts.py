"""Colours, texts and painted masks of the prompt writer as published, and its published helpers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from inpainting.models import image_to_text
from inpainting.prompts import (
    COLORS,
    CONFIG_FILE,
    PrompterConfig,
    discover_prompt,
    paint_masks,
    queries_for,
    remove_overlaps,
    target_text,
)
from ldm.images import to_pm1
from ldm.mllm.model import ChatExample
from ldm.settings.config import read_config
from tests.inpainting.test_prompt_writer import IMAGE, MASKS, in_memory
from tests.ldm.small_mllm import build_small, small_folder

WHOLE = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the human's questions. USER: <image>\nDiscover and describe the objects "
    "hidden behind the masks of the colors: green, red. ASSISTANT:"
)


def test_the_published_texts():
    """Byte for byte, and as the chat template renders them."""
    assert discover_prompt(["green", "red"]) == WHOLE
    query = queries_for(PrompterConfig(), IMAGE, MASKS[:2], ["", ""])[0]
    ask = ChatExample(query.image_u8, query.question)
    for name in ("llava", "llava_next"):
        chat = in_memory(*build_small(name)).chat
        assert chat.text(ask) == WHOLE
        full = chat.text(dataclasses.replace(ask, answer="<green>a</green>"))
        assert full == WHOLE + " <green>a</green></s>"
    assert list(COLORS)[:5] == ["red", "green", "blue", "yellow", "cyan"]
    masks = [torch.ones(1, 8, 8)] * 11
    names = image_to_text.draw_colored_masks(torch.zeros(3, 8, 8), masks[:6])[1]
    assert names == ["red", "blue", "yellow", "green", "cyan", "magenta"]
    with pytest.raises(ValueError, match="10 colours, got 11"):
        image_to_text.draw_colored_masks(torch.zeros(3, 8, 8), masks)
    assert target_text([("red", "a dog"), ("blue", "two trees")]) == "<red>a dog</red><blue>two trees</blue>"
    with pytest.raises(ValueError, match="caption of red holds a colour's tag"):
        target_text([("red", "a </blue> dog")])


def drawn(image: torch.Tensor, mask: torch.Tensor, color: tuple[int, ...], alpha: float) -> torch.Tensor:
    """torchvision's draw_segmentation_masks for one mask; image (3, h, w) uint8."""
    painted = image.clone()
    painted[:, mask] = torch.tensor(color, dtype=torch.uint8)[:, None]
    return (image * (1 - alpha) + painted * alpha).to(torch.uint8)


@pytest.mark.parametrize("alphas", [None, (0.0, 0.35, 1.0), (0.7, 0.123, 0.9)])
def test_masks_are_blended_as_published(alphas: tuple[float, ...] | None):
    masks, names = [MASKS[0], MASKS[1], MASKS[9]], ["red", "pink", "brown"]
    expected = torch.from_numpy(IMAGE).permute(2, 0, 1)
    for mask, name, alpha in zip(masks, names, alphas or (1.0, 1.0, 1.0), strict=True):
        inside = torch.from_numpy(mask)
        expected = torch.where(inside, drawn(expected, inside, COLORS[name], alpha), expected)
    found = paint_masks(IMAGE, masks, names, alphas, large_first=False)
    assert np.array_equal(found, expected.permute(1, 2, 0).numpy())
    large = np.ones_like(MASKS[0])
    painted = paint_masks(IMAGE, [MASKS[0], large], ["green", "red"])
    assert (painted[MASKS[0]] == COLORS["green"]).all(), "small masks are painted last"
    alone = remove_overlaps([large, MASKS[0], MASKS[1]])
    assert (np.sum(alone, axis=0) == 1).all()


def test_the_published_helpers(tmp_path: Path):
    """The notebook's steps, with its names: colours red, blue, ... and None for a text without answer."""
    masks = [torch.from_numpy(mask)[None].float() for mask in MASKS[:3]]
    image, names = image_to_text.draw_colored_masks(to_pm1(IMAGE), masks)
    assert names == ["red", "blue", "yellow"]
    assert np.array_equal(np.array(image), paint_masks(IMAGE, MASKS[:3], names))
    answer = "USER: what? ASSISTANT: <red>a dog</red><blue> a cat"
    assert image_to_text.output_to_color_dict(answer, names) == {"red": "a dog", "blue": "", "yellow": ""}
    assert image_to_text.output_to_color_dict("<red>a dog</red>", names) is None
    folder = small_folder("llava", tmp_path / "model")
    processor, model = image_to_text.get_pretrained_prompt_generator(folder, "full")
    inputs = processor(text=[discover_prompt(names)], images=[image], return_tensors="pt")
    device = next(model.parameters()).device
    ids = model.generate(**inputs.to(device), max_new_tokens=3, do_sample=False)
    assert image_to_text.output_to_color_dict(processor.batch_decode(ids)[0], names) is not None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"colors": ["red", "teal"]}, "colors must be different names among red, green"),
        ({"question": "why"}, "question"),
        ({"template": "none"}, "unknown template 'none'; allowed: vicuna_v1"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, values: dict[str, object], message: str):
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message) as raised:
        read_config(PrompterConfig, tmp_path / CONFIG_FILE)
    assert "prompter.json" in str(raised.value)
