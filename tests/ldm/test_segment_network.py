"""Cutting out with U2-Netp; most tests put scores of their own in the network's place."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from ldm.experts.segment import object_mask
from ldm.images import read_image, read_mask
from tests.ldm.test_segment import iou, painted


class Salient:
    """Stands for the network of OpenCV's dnn: its scores are high in an ellipse beside the true one."""

    def __init__(self, shift: float) -> None:
        self.shift = shift

    def setInput(self, image: np.ndarray) -> None:  # noqa: N802, OpenCV's name
        assert (image.shape, image.dtype) == ((1, 3, 320, 320), np.float32)
        assert -2.2 < image.min() < image.max() < 2.7  # normalised with ImageNet's mean and deviation

    def getUnconnectedOutLayersNames(self) -> list[str]:  # noqa: N802, OpenCV's name
        return ["d0", "d1"]

    def forward(self, name: str) -> np.ndarray:
        y, x = np.mgrid[0:320, 0:320] / 320
        inside = ((x - 0.5 - self.shift) / 0.2) ** 2 + ((y - 0.5) / 0.3) ** 2 < 1
        return np.where(inside, 0.9, 0.1)[None, None].astype(np.float32)


@pytest.fixture
def salient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Salient:
    """A network file in the models folder, and what OpenCV makes of it."""
    (tmp_path / "u2netp").mkdir()
    (tmp_path / "u2netp" / "u2netp.onnx").write_bytes(b"weights")
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    network = Salient(shift=0.01)
    monkeypatch.setattr(cv2.dnn, "readNetFromONNX", lambda path: network)
    return network


@pytest.mark.parametrize("background", ["white", "gradient", "texture"])
def test_colours_decide_the_rim_of_the_networks_mask(background: str, salient: Salient) -> None:
    image, truth = painted(background, (480, 640))
    mask, how = object_mask(image)
    shifted = np.roll(truth, round(salient.shift * 640), axis=1)
    assert how == "u2netp"
    assert iou(mask, truth) > 0.98 > iou(shifted, truth)
    assert object_mask(image, cutout="grabcut")[1] == "grabcut"


def test_where_colours_mislead_the_networks_mask_stays(
    salient: Salient, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, truth = painted("white", (480, 640))
    salient.shift = 0
    monkeypatch.setattr("ldm.experts.segment.grabcut", lambda rgb_u8, start, iterations: start == cv2.GC_FGD)
    assert iou(object_mask(image)[0], truth) > 0.99


def test_an_absent_and_a_damaged_network_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    image, _ = painted("white")
    assert object_mask(image)[1] == "grabcut"
    with pytest.raises(ValueError, match=r"u2netp.onnx: no such file; .*ldm.registry pull u2netp"):
        object_mask(image, cutout="u2netp")
    (tmp_path / "u2netp").mkdir()
    (tmp_path / "u2netp" / "u2netp.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"u2netp.onnx: not a readable ONNX network; pull it again"):
        object_mask(image)


@pytest.mark.slow
def test_photographs_with_the_network(test_data: Path, u2netp: Path) -> None:
    folder, overlap = test_data / "data" / "composite", {}
    for path in sorted((folder / "objects").glob("*.jpg")):
        truth = read_mask(folder / "object_masks" / f"{path.stem}.png")
        overlap[path.stem] = iou(object_mask(read_image(path))[0], truth)
    assert np.mean(list(overlap.values())) >= 0.966, overlap
    assert min(overlap.values()) >= 0.906, overlap
