"""The built-in detector: its networks, which classes a name means, boxes from maps and outlines, refusals."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from compose.models import network_of
from datasets.geometry import bbox_of_mask
from ldm.experts import builtin
from ldm.experts.builtin import NameClasses, Residual, RoughFinder, SameConv, efficientnet_lite0
from ldm.experts.detect import BuiltinDetector, Detection, Detector
from ldm.images import read_image, read_mask
from ldm.registry.models import detector_folder

IMAGE = np.zeros((100, 200, 3), np.uint8)
AXES = {"tabby": 0, "sofa": 1, "motor scooter": 2, "brown bear": 3}  # words whose vectors are unit axes


def test_lite0_has_the_published_size_and_places() -> None:
    """4.65 million parameters; one place for 32 pixels; nine of the sixteen blocks are residual."""
    network = efficientnet_lite0()
    assert sum(value.numel() for value in network.parameters()) == 4_652_008
    assert sum(isinstance(layer, Residual) for layer in network) == 9
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 64, 96)).shape == (1, 1000, 2, 3)


@pytest.mark.parametrize(("side", "before", "after"), [(6, 0, 1), (7, 1, 1)])
def test_padding_is_that_of_tensorflow(side: int, before: int, after: int) -> None:
    """Stride 2 on an even side pads the end only, on an odd side both ends."""
    conv = SameConv(1, 1, 3, 2, bias=False)
    nn.init.constant_(conv.weight, 1.0)
    image = torch.arange(1.0, side * side + 1).view(1, 1, side, side)
    padded = functional.pad(image, [before, after, before, after])
    assert torch.equal(conv(image), functional.conv2d(padded, conv.weight, stride=2))


@pytest.fixture
def words() -> NameClasses:
    """Four classes; a text is what fraction of its words belongs to each, the rest lies on an axis apart."""

    def embed(texts: list[str], batch: int = 128) -> torch.Tensor:
        rows = torch.zeros(len(texts), 5)
        for row, text in zip(rows, texts, strict=True):
            for word in text.split():
                row[next((axis for known, axis in AXES.items() if word in known.split()), 4)] += 1
        return functional.normalize(rows, dim=-1)

    found = NameClasses.__new__(NameClasses)
    found.embed = embed  # type: ignore[method-assign]
    found.owners = torch.arange(4)
    found.vectors = embed(list(AXES)), embed(list(AXES))
    return found


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("tabby", "tabby"),
        ("SOFA", "sofa"),
        ("blue scooter", "motor scooter"),
        ("scooter with a bear", "motor scooter"),  # the noun is before the preposition
        ("man in the brown jacket", None),  # "brown" alone does not make it a bear
        ("xylem", None),
        ("left sofa", None),  # one of several
        ("Rightmost tabby", None),
    ],
)
def test_which_class_a_name_means(words: NameClasses, name: str, nearest: str | None) -> None:
    weights = words.weights(name)
    assert (weights is None) == (nearest is None)
    if weights is not None and nearest is not None:
        assert weights.argmax() == list(AXES).index(nearest)
        assert weights.max() == 1
        assert weights.min() >= 0


def finder(blobs: list[tuple[slice, slice, float]], meant: bool = True) -> RoughFinder:
    """A finder whose class maps show these blobs on a grid of 16 x 16 places."""
    maps = torch.zeros(2, 16, 16)
    for rows, columns, value in blobs:
        maps[0, rows, columns] = value
    weights = torch.tensor([1.0, 0.0]) if meant else None
    found = RoughFinder.__new__(RoughFinder)
    found.words = SimpleNamespace(weights=lambda name: weights)  # type: ignore[assignment]
    found.class_maps = lambda rgb_u8: [maps]  # type: ignore[method-assign]
    found.cutout, found.model = Path("u2netp.onnx"), nn.ModuleDict()
    return found


def outline(monkeypatch: pytest.MonkeyPatch, mask: Any) -> None:
    """U2-Netp sees this part, in fractions of the window, as the object."""
    x0, y0, x1, y1 = (round(320 * edge) for edge in mask)
    scores = np.zeros((320, 320), np.float32)
    scores[y0:y1, x0:x1] = 1
    monkeypatch.setattr(builtin, "u2netp_scores", lambda images_u8, path: [scores])


LEFT = (slice(4, 12), slice(2, 6), 0.8)
RIGHT = (slice(8, 12), slice(10, 14), 0.4)


def test_without_an_outline_the_map_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    outline(monkeypatch, (0, 0, 0, 0))
    for blobs in ([LEFT, RIGHT], [RIGHT, LEFT]):
        box, score = finder(blobs).find(IMAGE, "cat") or ((), 0)
        assert score == pytest.approx(0.8)
        assert {type(edge) for edge in box} == {float}
        assert box == pytest.approx((2 / 16, 4 / 16, 6 / 16, 12 / 16), abs=0.04)  # linear edges
    box, score = finder([RIGHT]).find(IMAGE, "cat") or ((), 0)
    assert box == pytest.approx((10 / 16, 8 / 16, 14 / 16, 12 / 16), abs=0.04)


def test_the_outline_gives_foot_and_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """U2-Netp looks at the box and 15 % around it; what it sees there is the box."""
    outline(monkeypatch, (0, 0, 0, 0))
    (x0, y0, x1, y1), _ = finder([LEFT]).find(IMAGE, "cat") or ((0, 0, 0, 0), 0)
    left, top = int((x0 - 0.15 * (x1 - x0)) * 200), int((y0 - 0.15 * (y1 - y0)) * 100)
    right, bottom = np.ceil((x1 + 0.15 * (x1 - x0)) * 200), np.ceil((y1 + 0.15 * (y1 - y0)) * 100)
    outline(monkeypatch, (0.25, 0.125, 0.75, 0.875))
    box, _ = finder([LEFT]).find(IMAGE, "cat") or ((), 0)
    wide, high = right - left, bottom - top
    expected = left + wide / 4, top + high / 8, left + 3 * wide / 4, top + 7 * high / 8
    assert box == pytest.approx(tuple(np.array(expected) / (200, 100, 200, 100)))


def test_an_outline_of_something_else_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    outline(monkeypatch, (0, 0, 0, 0))
    plain = finder([LEFT]).find(IMAGE, "cat")
    outline(monkeypatch, (0.9, 0.9, 1, 1))
    assert finder([LEFT]).find(IMAGE, "cat") == plain


@pytest.mark.parametrize(("score", "meant"), [(0.05, True), (0.0, True), (0.9, False)])
def test_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, score: float, meant: bool) -> None:
    outline(monkeypatch, (0, 0, 0, 0))
    detector = BuiltinDetector(finder([(slice(4, 12), slice(2, 6), score)], meant))
    with pytest.raises(ValueError, match=r"^nothing like 'lamp' was found .*0.12.* name it with --anchors"):
        detector.find_names(IMAGE, ["lamp"])
    with pytest.raises(ValueError, match="nothing like 'lamp' and nothing like 'red sofa' was found"):
        detector.find_names(IMAGE, ["lamp", "red sofa"])


def test_it_behaves_as_other_detectors(monkeypatch: pytest.MonkeyPatch) -> None:
    outline(monkeypatch, (0, 0, 0, 0))
    detector = BuiltinDetector(finder([LEFT, RIGHT]))
    found = detector.find_names(IMAGE, ["cat"])["cat"]
    assert isinstance(found, Detection)
    assert (found.name, found.score) == ("cat", pytest.approx(0.8))
    assert network_of(detector) is detector.finder.model  # so it leaves the device with --offload
    assert detector.find_all(IMAGE, "cat") == [found]


def test_class_maps_are_probabilities_and_of_the_asked_precision() -> None:
    """At 224 to 640 pixels; an image that was just seen is not computed again."""
    torch.manual_seed(0)
    found = RoughFinder.__new__(RoughFinder)
    found.model, found.latest = nn.ModuleDict({"classifier": efficientnet_lite0().bfloat16()}), None
    image_u8 = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtin, "SIDES", (32, 64))
        small, large = found.class_maps(image_u8)
    assert (small.shape, large.shape) == ((1000, 1, 2), (1000, 2, 3))
    assert small.dtype == torch.float32
    assert small.sum(0) == pytest.approx(np.ones((1, 2)), abs=1e-4)
    assert found.class_maps(image_u8)[0] is small
    assert found.class_maps(image_u8.copy())[0] is not small


def test_a_broken_network_is_named() -> None:
    found = RoughFinder.__new__(RoughFinder)
    classifier = efficientnet_lite0()
    nn.init.constant_(classifier[-1].bias, float("nan"))
    found.model, found.latest = nn.ModuleDict({"classifier": classifier}), None
    with pytest.raises(ValueError, match="the image network of the detector gave NaN"):
        found.class_maps(IMAGE)


def test_missing_files_name_their_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the outline's network, then the detector's own folder, then a file in it."""
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    with pytest.raises(ValueError, match=r"no such file; get it with: python -m ldm.registry pull u2netp"):
        Detector.load("builtin")
    (tmp_path / "u2netp").mkdir()
    (tmp_path / "u2netp" / "u2netp.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"get it with: python -m ldm.registry pull builtin-detector"):
        Detector.load(Path("builtin"))
    assert detector_folder(Path("builtin")) == tmp_path / "builtin_detector"
    (tmp_path / "builtin_detector").mkdir()
    torch.save({"_fc.bias": torch.zeros(1000)}, tmp_path / "builtin_detector" / "lite0.pth")
    with pytest.raises(ValueError, match=r"lite0.pth: 1 weights, EfficientNet-Lite0 has \d+"):
        Detector.load("builtin")


@pytest.mark.parametrize("folder", ["models/detector", "./mine", "builtin/other", "/builtin"])
def test_other_folders_are_what_they_are(folder: str) -> None:
    assert detector_folder(Path(folder)) == Path(folder)


def test_synonyms_and_clean_names_count_half_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = ["tabby", *(f"thing {i}" for i in range(1, 1000))]
    synonyms = {str(i): f"{word}, other {i}" for i, word in enumerate(clean)}
    synonyms["1"] = "couch, sofa"
    (tmp_path / "imagenet1k_clean_names.json").write_text(json.dumps(clean))
    (tmp_path / "imagenet1k_label_to_names.json").write_text(json.dumps(synonyms))
    vectors = {"tabby": 0, "sofa": 1}

    def embed(self: NameClasses, texts: list[str], batch: int = 128) -> torch.Tensor:
        return functional.one_hot(torch.tensor([vectors.get(text, 2) for text in texts]), 3).float()

    monkeypatch.setattr(NameClasses, "embed", embed)
    words = NameClasses(nn.Identity(), None, tmp_path)
    for name, meant in (("tabby", 1.0), ("sofa", None)):  # the clean name of "sofa" is another
        weights = words.weights(name)
        assert (None if weights is None else weights[0]) == meant


@pytest.fixture(scope="module")
def pulled(root: Path) -> Any:
    """The real one where it was pulled."""
    for name in ("u2netp", "builtin_detector"):
        if not (root / "models" / name / "hashes.json").is_file():
            pytest.skip("needs python -m ldm.registry pull builtin-detector, and u2netp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIFROST_MODELS", str(root / "models"))
        yield Detector.load("builtin")


def test_a_photograph(pulled: Detector, test_data: Path) -> None:
    """A backpack is found as the mask of the test data shows it; a piano is not there."""
    objects = test_data / "data" / "composite"
    image_u8 = read_image(objects / "objects" / "backpack.jpg").rgb_u8
    x0, y0, x1, y1 = bbox_of_mask(read_mask(objects / "object_masks" / "backpack.png"))
    h, w = image_u8.shape[:2]
    found = pulled.find_names(image_u8, ["rucksack"])["rucksack"]
    assert found.box01_xyxy == pytest.approx((x0 / w, y0 / h, x1 / w, y1 / h), abs=0.05)
    with pytest.raises(ValueError, match="nothing like 'piano' was found"):
        pulled.find_names(image_u8, ["piano"])


def test_a_drawn_sheet(pulled: Detector) -> None:
    """A plain image shows nothing that one could name."""
    assert pulled.find_all(np.full((120, 160, 3), 200, np.uint8), "dog") == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [("sofa", "couch"), ("fridge", "refrigerator"), ("rucksack", "backpack"), ("red bus", "school bus"),
     ("grand piano", "grand piano"), ("young woman", None), ("crowd of people", None)],
)  # fmt: skip
def test_names_that_people_type(pulled: Any, name: str, meant: str | None) -> None:
    words = pulled.finder.words
    weights = words.weights(name)
    assert (None if weights is None else words.clean[int(weights.argmax())]) == meant
