"""Finding named things: boxes of both families of detectors, and the depth of what a box shows."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.experts.detect import Detector, depth_in_box
from tests.ldm import small_detectors

IMAGE = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=[small_detectors.grounding_dino, small_detectors.owlv2])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return request.param(tmp_path_factory.mktemp("detector") / "model")


@pytest.fixture(scope="module")
def detectors_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_detectors.grounding_dino(tmp_path_factory.mktemp("detector") / "model")


def test_boxes_lie_in_the_image_best_first(folder: Path) -> None:
    detector = Detector.load(folder, least_score=0.0)
    found = detector.find_all(IMAGE, "sofa")
    assert found
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for one in found:
        x0, y0, x1, y1 = one.box01_xyxy
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1
        assert one.name == "sofa"
    assert detector.find_names(IMAGE, ["sofa"]) == {"sofa": found[0]}
    assert detector.find_all(IMAGE, "sofa") == found


def test_each_name_has_its_own_answer_and_the_absent_are_listed(folder: Path) -> None:
    assert set(Detector.load(folder, least_score=0.0).find_names(IMAGE, ["sofa", "lamp"])) == {
        "sofa",
        "lamp",
    }
    with pytest.raises(
        ValueError, match="nothing like 'sofa' and nothing like 'lamp' was found in .*--anchors"
    ):
        Detector.load(folder, least_score=1.0).find_names(IMAGE, ["sofa", "lamp"])


@pytest.mark.parametrize("flipped", [False, True])
def test_another_name_gets_another_box(folder: Path, flipped: bool) -> None:
    image_u8 = np.ascontiguousarray(IMAGE[:, ::-1]) if flipped else IMAGE
    detector = Detector.load(folder, least_score=0.0)
    for name in ("sofa", "lamp"):
        tokens = detector.processor.tokenizer(detector.words.format(name))["input_ids"]
        assert (
            detector.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip(" .").endswith(name)
        )
    sofa, lamp = (detector.find_all(image_u8, name) for name in ("sofa", "lamp"))
    assert sofa[0].box01_xyxy != lamp[0].box01_xyxy
    assert [one.score for one in sofa] != [one.score for one in lamp]
    assert detector.find_names(image_u8, ["lamp", "sofa"]) == {"lamp": lamp[0], "sofa": sofa[0]}


@pytest.mark.parametrize("side", [20, 40, 110])
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_half_precision_samples_large_maps_where_it_should(
    detectors_folder: Path, side: int, dtype: str
) -> None:
    """Of ones everywhere a sampling layer gives ones; its maps are channels-last, with 32 channels here."""
    model = Detector.load(detectors_folder, dtype=dtype).model
    layers = [layer for layer in model.modules() if type(layer).__name__ == "MultiScaleDeformableAttention"]
    assert layers
    kind = next(model.parameters()).dtype
    value = torch.ones(1, side * side, 2, 16, dtype=kind)
    places = torch.full((1, 4096, 2, 1, 4, 2), 0.96, dtype=kind)
    weights = torch.full((1, 4096, 2, 1, 4), 0.25, dtype=kind)
    sizes = torch.tensor([[side, side]])
    for layer in layers:
        found = layer(value, sizes, [(side, side)], torch.tensor([0]), places, weights, 64)
        assert found.dtype is kind
        torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=0.01)


def test_boxes_of_a_padding_detector_are_in_the_frame_of_the_image(tmp_path: Path) -> None:
    """Its grid divides the padded square: cells of a wide image are as wide as high in pixels."""
    detector = Detector.load(small_detectors.owlv2(tmp_path / "model"), least_score=0.0)
    found = detector.find_all(IMAGE, "sofa")
    middles = {round((one.box01_xyxy[0] + one.box01_xyxy[2]) / 2 * 120) for one in found}
    # The outermost cells are cut by the border; the inner ones have their middles at 30, 60 and 90 of 120.
    assert {30, 60, 90} <= middles
    inner = [one.box01_xyxy for one in found if one.box01_xyxy[0] > 0 and one.box01_xyxy[2] < 1]
    whole = [box for box in inner if box[1] > 0 and box[3] < 1]
    assert whole
    for x0, y0, x1, y1 in whole:
        assert (x1 - x0) * 120 == pytest.approx((y1 - y0) * 90, rel=1e-3)


def test_another_folder_is_refused(tmp_path: Path, small_depth_network: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        Detector.load(tmp_path / "none")
    with pytest.raises(ValueError, match="type 'dpt'; allowed: grounding-dino"):
        Detector.load(small_depth_network)
    (folder / "preprocessor_config.json").unlink(missing_ok=True)


def test_depth_of_a_box_is_that_of_the_thing_in_it() -> None:
    depth_01 = np.tile(np.linspace(0, 0.4, 60, dtype=np.float32)[:, None], (1, 80))
    rows, columns = np.mgrid[0:60, 0:80]
    thing = ((columns - 40) / 12) ** 2 + ((rows - 30) / 15) ** 2 < 1
    depth_01[thing] = 0.7
    box = (28 / 80, 15 / 60, 52 / 80, 45 / 60)
    assert depth_in_box(depth_01, box) == pytest.approx((0.7, 0.7, 0.7))
    noisy = depth_01.copy()
    noisy[28:31, 38:41] = 1.0  # a speck in front of it
    d, far, near = depth_in_box(noisy, box, thing)
    assert (d, far, near) == pytest.approx((0.7, 0.7, 0.7))
    d, far, near = depth_in_box(depth_01, (0, 0, 1, 1))
    assert 0 <= far <= d <= near <= 1
