"""A rectangle has the same seam however the image is stored; the judge of depth order has a control."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from compose.benchmark.report import Scores, score_tables
from compose.benchmark.score import flipped_paste, orders, seam_contrast
from datasets.benchmark import Anchor, BenchmarkCase
from ldm.images import read_image

SIZE = (160, 200)
RECTANGLE = np.s_[40:120, 56:150]


def photograph(seed: int = 0) -> np.ndarray:
    """Smooth shades, edges and fine grain, far from black and white, (160, 200, 3) uint8."""
    rng = np.random.default_rng(seed)
    shades = cv2.GaussianBlur(rng.random((*SIZE, 3)).astype(np.float32), (0, 0), 12)
    shades = (shades - shades.min()) / np.ptp(shades)
    edges = cv2.resize(rng.random((8, 10, 3)).astype(np.float32), SIZE[::-1], interpolation=cv2.INTER_NEAREST)
    return (60 + 90 * shades + 30 * edges + 6 * rng.random((*SIZE, 3))).astype(np.uint8)


def with_rectangle(before_u8: np.ndarray, levels: float | tuple[float, ...]) -> np.ndarray:
    result = before_u8.astype(np.float64)
    result[RECTANGLE] += levels
    return np.clip(np.rint(result), 0, 255).astype(np.uint8)


def encoded(image_u8: np.ndarray, kind: str) -> np.ndarray:
    """After a file or a decoder."""
    rng = np.random.default_rng(1)
    if kind.startswith("jpeg"):
        flags = [cv2.IMWRITE_JPEG_QUALITY, int(kind[4:])]
        return cv2.imdecode(cv2.imencode(".jpg", image_u8, flags)[1], cv2.IMREAD_COLOR)
    noise = {
        "png": 0.0,
        "noise": rng.integers(-1, 2, image_u8.shape),
        "strong noise": rng.normal(0, 4, image_u8.shape),
        # An autoencoder's errors hang together over a few pixels, and it blurs edges.
        "autoencoder": 25 * cv2.GaussianBlur(rng.normal(0, 1, image_u8.shape), (0, 0), 1.5),
    }[kind]
    blurred = cv2.GaussianBlur(image_u8, (0, 0), 1) if kind == "autoencoder" else image_u8
    return np.clip(np.rint(blurred + noise), 0, 255).astype(np.uint8)


KINDS = ["png", "noise", "strong noise", "jpeg95", "jpeg75", "autoencoder"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", [12.0, -12.0, (12.0, -12.0, 12.0), 25.0])
def test_a_rectangle_scores_the_same_in_every_file(kind: str, levels: float | tuple[float, ...]) -> None:
    before_u8 = photograph()
    found = seam_contrast(before_u8, encoded(with_rectangle(before_u8, levels), kind))
    expected = float(np.abs(levels).mean())
    assert seam_contrast(before_u8, with_rectangle(before_u8, levels)) == pytest.approx(expected, abs=0.1)
    assert found == pytest.approx(expected, abs=1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_without_a_rectangle_has_none_in_any_file(kind: str) -> None:
    before_u8 = photograph()
    assert seam_contrast(before_u8, encoded(before_u8, kind)) <= 2.0
    assert seam_contrast(before_u8, before_u8) == 0


@pytest.mark.parametrize("levels", [6, 12, 24, 48])
def test_a_stronger_seam_scores_more(levels: int) -> None:
    before_u8 = photograph()
    assert seam_contrast(before_u8, with_rectangle(before_u8, levels)) == pytest.approx(levels, abs=0.2)


def test_a_shift_of_the_whole_image_is_no_seam() -> None:
    before_u8 = photograph()
    assert seam_contrast(before_u8, before_u8 + np.uint8(20)) == 0


def test_a_rectangle_at_the_border_counts_at_its_inner_edges() -> None:
    before_u8 = photograph()
    after_u8 = before_u8.copy()
    after_u8[90:, 100:] += np.uint8(12)
    assert seam_contrast(before_u8, after_u8) == pytest.approx(12, abs=0.1)


@pytest.mark.parametrize("contrast", [30, 90])
def test_an_object_with_a_free_outline_hardly_counts(contrast: int) -> None:
    before_u8 = photograph()
    disk = np.hypot(*(np.indices(SIZE) - np.array([80, 100])[:, None, None])) < 45
    after_u8 = np.where(disk[..., None], before_u8.astype(int) + contrast, before_u8).clip(0, 255)
    assert seam_contrast(before_u8, after_u8.astype(np.uint8)) < 0.35 * contrast


def test_in_a_real_photograph(test_data) -> None:
    before_u8 = read_image(test_data / "data/composite/backgrounds/bedroom.jpg").rgb_u8
    before_u8 = np.asarray(Image.fromarray(before_u8).resize((200, 160))) // 2 + 60
    scores = [seam_contrast(before_u8, encoded(with_rectangle(before_u8, 12), kind)) for kind in KINDS]
    assert scores == pytest.approx([12] * len(KINDS), abs=1.2)


def depth_by_occlusion(anchor: np.ndarray):
    """A judge that reads what covers what: red things in front of the anchor are nearer, others farther."""

    def estimate(rgb_u8: np.ndarray) -> np.ndarray:
        thing = (rgb_u8 == (250, 10, 10)).all(axis=2)
        depth_01 = np.where(anchor, 0.5, 0.3).astype(np.float32)
        depth_01[thing] = 0.7 if (thing & anchor).any() else 0.4
        return depth_01

    return estimate


class Outlines:
    """An instances file with an anchor and further objects."""

    def __init__(self, *masks: np.ndarray) -> None:
        self.masks = masks

    def mask(self, _: int) -> np.ndarray:
        return self.masks[0]

    def neighbours(self, *_: object) -> list[np.ndarray]:
        return list(self.masks)


@pytest.mark.parametrize("relation", ["in front of", "behind", "left of"])
@pytest.mark.parametrize("right", [True, False])
def test_the_control_is_pasted_in_the_wrong_order_and_every_neighbour_is_judged(
    relation: str, right: bool
) -> None:
    before_u8 = np.full((100, 100, 3), 90, np.uint8)
    anchor, wall = np.zeros((2, 100, 100), bool)
    anchor[40:90, 20:50], wall[10:30, 30:70] = True, True
    box = (0.3, 0.2, 0.6, 0.8)
    case = BenchmarkCase("a", "a.png", "b", "b.png", relation, Anchor("c", 1, box), box, "-")
    thing_u8, solid = np.tile(np.uint8([250, 10, 10]), (30, 20, 1)), np.ones((30, 20), bool)
    opposite = {"in front of": "behind", "behind": "in front of", "left of": "left of"}[relation]
    made_as = SimpleNamespace(relation=opposite if right else relation, box01_xyxy=box)
    after_u8 = flipped_paste(before_u8, thing_u8, solid, made_as, anchor)
    covers = (after_u8[anchor] != 90).any()
    judge = depth_by_occlusion(anchor)
    found = orders(case, (before_u8, after_u8), (thing_u8, solid), Outlines(anchor, wall), judge)
    if relation == "left of":
        assert found.keys() == {"depth_order_all"}
        return
    assert covers == ((relation == "in front of") == right)
    assert found["depth_order"] == right
    assert found["depth_order_flipped"] == 0
    assert found["depth_order_all"] == (1 if right else 0.5)


@pytest.mark.parametrize("present", [("dino", "clip_i"), ("clip_i",), ()])
def test_numbers_stand_under_the_names_of_the_published_table(present: tuple[str, ...]) -> None:
    scores = Scores(Path("results"))
    case = BenchmarkCase("a", "a", "b", "b", "behind", Anchor("c", 1, (0, 0, 1, 1)), (0, 0, 1, 1), "-")
    for value in (0.7, 0.8):
        scores.add(case, dict.fromkeys(present, value), [np.zeros((4, 4, 3), np.uint8)] * 3)
    (report,) = score_tables([scores])["folders"]
    names = {"dino": "DINO", "clip_i": "CLIP"}
    assert report["published_names"].keys() == {names[name] for name in present}
    for numbers in report["published_names"].values():
        assert numbers["mean"] == pytest.approx(75)
        assert 70 <= numbers["low"] <= 75 <= numbers["high"] <= 80
