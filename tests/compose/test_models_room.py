"""The networks of a composite obey precision and offload; a language model leaves the GPU before painting."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compose.models import Models, load_models
from compose.settings import ComposeSettings
from ldm.device import DTYPES
from ldm.experts.depth import DepthEstimator
from ldm.experts.detect import Detector
from ldm.mllm import model as mllm_model
from ldm.mllm.model import Mllm, load_mllm
from llava_bifrost.locator import Locator, LocatorConfig, load_locator
from llava_bifrost.predict import run
from llava_bifrost.predict.run import load_networks
from llava_bifrost.settings import PredictImage
from tests.ldm.small_detectors import grounding_dino, owlv2
from tests.ldm.small_mllm import build_small, small_folder

FILES = {"background": Path("room.png"), "object": Path("dog.png"), "instruction": "Place the dog"}
LOCATOR = Path("assets/tiny/locator")
IMAGE = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "wanted"), [("auto", torch.float32), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_locator_and_depth_network_have_the_precision_of_the_settings(name: str, wanted: torch.dtype):
    models = load_models(ComposeSettings(**FILES, device="cpu", dtype=name))
    assert models.locator(LOCATOR).mllm.dtype == wanted
    assert next(models.depth.model.parameters()).dtype == wanted
    assert load_models(ComposeSettings(**FILES, device="cpu", dtype=name), models) is models
    assert load_models(ComposeSettings(**FILES, device="cpu", dtype="fp16"), models) is not models


@pytest.mark.parametrize("name", ["auto", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("write", [grounding_dino, owlv2])
def test_detectors_have_the_precision_of_the_settings(name: str, write: Any, tmp_path: Path):
    """They find the same boxes in each, to the digits that it has."""
    folder, wanted = write(tmp_path / "detector"), DTYPES.get(name, torch.float32)
    models = load_models(ComposeSettings(**FILES, device="cpu", dtype=name))
    detector = models.detector(folder)
    assert {value.dtype for value in detector.model.parameters()} == {wanted}
    plain = Detector.load(folder)
    plain.least_score = detector.least_score = 0.0
    found, expected = (network.find_all(IMAGE, "sofa") for network in (detector, plain))
    assert len(found) > 4
    for one in found:
        apart = [np.subtract(one.box01_xyxy, other.box01_xyxy) for other in expected]
        assert min(np.abs(apart).max(axis=1)) < (1e-6 if wanted == torch.float32 else 0.02)


def test_precisions_of_detectors_that_there_are_not(tmp_path: Path):
    with pytest.raises(ValueError, match="unknown dtype 'half'; allowed: auto, fp32, fp16, bf16"):
        Detector.load(owlv2(tmp_path / "detector"), dtype="half")


@pytest.mark.parametrize(
    ("device", "name", "depth"),
    [
        ("cpu", "auto", torch.float32),
        ("cpu", "bf16", torch.bfloat16),
        ("cuda", "fp16", torch.float16),
        ("cuda", "fp32", torch.float32),
        ("cuda", "auto", torch.float32),  # its folder declares none
    ],
)
def test_all_networks_of_predict_obey_device_and_precision(
    device: str, name: str, depth: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(run, "load_locator", lambda folder, *how: how)
    for network in (DepthEstimator, Detector):
        monkeypatch.setattr(network, "load", lambda folder, **how: how)
    networks = load_networks(
        PredictImage(
            image=Path("room.png"),
            instruction="Place the dog",
            locator=LOCATOR.as_posix(),
            device=device,
            dtype=name,
            detector=tmp_path,
            depth_model=tmp_path,
        )  # fmt: skip
    )
    assert networks.locator(None) == (device, name, "")
    assert networks.detector(None) == {"device": device, "dtype": name}
    assert networks.depth == {"device": device, "dtype": depth}


class Moved(nn.Module):
    """Notes where it is sent."""

    def __init__(self, is_quantized: bool = False) -> None:
        super().__init__()
        self.places: list[str] = []
        self.is_quantized = is_quantized

    def to(self, place: Any) -> Moved:  # type: ignore[override]
        self.places.append(str(place))
        return self


def made(offload: bool, quantised: bool = False) -> tuple[Models, dict[str, Moved]]:
    """Models with stand-ins for a locator, a detector and a depth network."""
    models = load_models(ComposeSettings(**FILES, device="cpu", offload=offload))
    model, processor = build_small("llava_words")
    locator = Locator(Mllm(model, processor, Path()), LocatorConfig(decimals=2))
    nets = {"locator": Moved(quantised), "detector": Moved(), "depth": Moved()}
    locator.mllm = SimpleNamespace(model=nets["locator"])  # type: ignore[assignment]
    models.loaded[load_locator, LOCATOR] = locator
    models.loaded[Detector.load, Path("d")] = SimpleNamespace(model=nets["detector"])
    models.loaded[DepthEstimator.load, models.depth_folder] = SimpleNamespace(model=nets["depth"])
    return models, nets


def test_offloaded_networks_leave_before_painting_and_come_back():
    models, nets = made(offload=True)
    assert models.locator(LOCATOR).mllm.model is nets["locator"]
    _ = models.depth
    assert models.compositor is models.compositor
    _ = models.depth
    assert nets["depth"].places == ["cpu", "cpu", "cpu", "cpu"]  # device of this test, twice made room, back
    assert nets["locator"].places == ["cpu", "cpu", "cpu"]
    assert nets["detector"].places == ["cpu", "cpu"]


def test_without_offload_networks_stay():
    models, nets = made(offload=False)
    _ = models.locator(LOCATOR), models.depth, models.compositor
    assert not any(net.places for net in nets.values())


def test_quantised_weights_are_given_back():
    models, nets = made(offload=True, quantised=True)
    _ = models.locator(LOCATOR), models.compositor
    assert nets["locator"].places == []
    assert (load_locator, LOCATOR) not in models.loaded
    assert (Detector.load, Path("d")) in models.loaded


@pytest.mark.parametrize("load_in", ["4bit", "8bit"])
def test_smaller_weights_of_a_locator(load_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = small_folder("llava", tmp_path)
    with pytest.raises(ValueError, match=f"{load_in} weights need a CUDA device and bitsandbytes"):
        load_mllm(folder, "cpu", load_in=load_in)
    asked: dict[str, Any] = {}

    def from_pretrained(path: Path, **given: Any) -> nn.Module:
        asked.update(given)
        return build_small("llava")[0]

    monkeypatch.setattr(mllm_model, "four_bit_works", lambda: True)
    monkeypatch.setattr(mllm_model.transformers, "BitsAndBytesConfig", lambda **given: given)
    monkeypatch.setattr(mllm_model.AutoModelForImageTextToText, "from_pretrained", from_pretrained)
    load_locator(folder, "cpu", "bf16", load_in)
    way = asked["quantization_config"]
    assert way[f"load_in_{load_in}"] is True
    assert ("bnb_4bit_quant_type" in way) == (load_in == "4bit")
    assert (asked["dtype"], asked["device_map"]) == (torch.bfloat16, {"": torch.device("cpu")})
    with pytest.raises(ValueError, match="load_in"):
        ComposeSettings(**FILES, load_in="3bit")
