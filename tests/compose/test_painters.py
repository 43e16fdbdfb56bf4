"""Painters: the geometry is the same for all, and no painter touches what it protects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compose import compose, load_models
from compose.painters import choose_painter, relight
from compose.pipeline import Result
from compose.settings import ComposeSettings
from compose.verbs import JobNetworks
from ldm.decode import LoadedImage
from ldm.experts.erase import Eraser
from ldm.experts.painter import FolderPainter
from ldm.images import encode_image, read_image
from tests.compose.small_pipelines import make

FAMILIES = ("sd", "sd-text", "sdxl", "sd3", "sd3-clip", "flux")
H, W = 96, 128


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    for family in FAMILIES:
        make(family, folder / family)
    return folder


def settings_of(painter: str, **more: Any) -> ComposeSettings:
    """A red disc on a striped room with a nearer post at the left."""
    y, x = np.mgrid[0:48, 0:48]
    disc, room = np.hypot(x - 24, y - 24) < 20, np.full((H, W, 3), 120, np.uint8)
    room[:, ::8] = 160
    room[:, 10:40] = (10, 90, 10)
    depth_u16 = np.full((H, W), 20000, np.uint16)
    depth_u16[:, 10:40] = 60000
    thing = np.where(disc[..., None], (200, 30, 30), (20, 20, 220)).astype(np.uint8)
    given: dict[str, Any] = {
        "background": room, "background_depth": Image.fromarray(depth_u16), "object": thing,
        "object_mask": disc,
        "box": (0.2, 0.3, 0.6, 0.9), "depth": (0.6,), "painter": painter, "eraser": "opencv", **more,
    }  # fmt: skip
    return ComposeSettings(**given)


def composed(painter: str, **more: Any) -> Result:
    settings = settings_of(painter, **more)
    return compose(settings, load_models(settings), progress=False)


def assert_protected(result: Result) -> None:
    changed = (result.images_u8[0] != result.background.rgb_u8).any(axis=2)
    assert changed.any()
    assert not changed[:, 10:40].any()  # the post is nearer
    assert not changed[~result.edit_mask].any()
    assert result.changed_outside == 0


def test_paste_shows_the_cut_out_where_nothing_hides_it() -> None:
    result = composed("paste")
    assert_protected(result)
    layers = result.geometry.native_layers
    whole = layers.coverage_01 == 1
    red_u8 = result.images_u8[0][result.geometry.window.part][whole]
    assert red_u8[:, 0].min() > 150
    assert red_u8[:, 2].max() < 60  # nothing of the object's blue surroundings
    assert result.report["painter"] == "paste"
    assert result.recipe["settings"]["painter"] == "paste"


@pytest.mark.parametrize("mode", ["replace", "id-transfer", "inpaint"])
def test_paste_first_erases_what_was_there(mode: str) -> None:
    target = np.zeros((H, W), bool)
    target[30:80, 60:120] = True
    background = np.full((H, W, 3), 120, np.uint8)
    background[32:78, 62:118] = (250, 250, 0)  # what is there
    result = composed("paste", mode=mode, background=background, target_mask=target, box=None, depth=None)
    assert result.report["eraser"] == "opencv"
    seen = result.images_u8[0].astype(int)
    yellow = (seen[..., 0] > 180) & (seen[..., 1] > 180)
    assert not yellow.any()
    assert result.changed_outside == 0
    assert "eraser" in result.recipe["weights"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pipeline_paints_the_edit_region_alone(family: str, pipelines: Path) -> None:
    painter = FolderPainter.load(pipelines / family / "model")
    settings = settings_of(str(pipelines / family / "model"), steps=2, num_samples=2, prompt="ball")
    models = load_models(settings)
    models.others[FolderPainter, settings.painter] = replace(painter, size=64)
    result = compose(settings, models, progress=False)
    assert_protected(result)
    assert not np.array_equal(*result.images_u8)  # two seeds
    assert result.report["pipeline"]["prompt"] == "ball"
    assert result.report["pipeline"]["strength"] == 0.6
    assert result.recipe["weights"]["painter"]
    again = compose(settings, models, progress=False)
    assert np.array_equal(again.images_u8, result.images_u8)


class WithReference:
    """The signature of pipelines that see the object, as Flux2Klein's."""

    def __call__(
        self, prompt: Any = None, image: Any = None, image_reference: Any = None, mask_image: Any = None,
        height: Any = None, width: Any = None, strength: float = 0.8, num_inference_steps: int = 4,
        guidance_scale: float = 4.0, generator: Any = None, output_type: str = "pil",
    ) -> Any:  # fmt: skip
        assert image_reference.size == (32, 32)
        assert output_type == "np"
        shown = np.asarray(image) / 255 * (np.asarray(mask_image)[..., None] == 0)
        return type("Output", (), {"images": [shown]})


class TrueGuidance(WithReference):
    """As Qwen's: `guidance_scale` is for distilled models alone."""

    def __call__(  # type: ignore[override]
        self, prompt: Any = None, negative_prompt: Any = None, true_cfg_scale: float = 4.0, image: Any = None,
        mask_image: Any = None, guidance_scale: Any = None, num_inference_steps: int = 4,
    ) -> Any:  # fmt: skip
        raise NotImplementedError


def test_arguments_follow_the_signature() -> None:
    painter = FolderPainter(WithReference(), {}, 32)
    given = painter.arguments("a ball", 3, 2.0, None)
    assert given == {
        "prompt": "a ball", "num_inference_steps": 3, "guidance_scale": 2.0,
        "height": 32, "width": 32, "output_type": "np",
    }  # fmt: skip
    crop_u8, mask = np.full((32, 32, 3), 9, np.uint8), np.eye(32, dtype=bool)
    painted = painter.paint(crop_u8, mask, crop_u8, 0, given)
    assert np.array_equal(painted, np.where(mask[..., None], 0, crop_u8))
    given = FolderPainter(TrueGuidance(), {}, 32).arguments("a ball", None, 2.0, None)
    assert given == {"prompt": "a ball", "true_cfg_scale": 2.0, "negative_prompt": " "}
    with pytest.raises(ValueError, match="TrueGuidance does not know strength; it takes prompt,"):
        FolderPainter(TrueGuidance(), {}, 32).arguments("a ball", None, None, 0.5)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, "no diffusers pipeline"),
        ('{"_class_name": "Unheard"}', "the pipeline Unheard is unknown"),
        ('{"_class_name": "DDPMPipeline"}', "cannot be loaded as an inpainting pipeline"),
        ("[]", "model_index.json"),
    ],
)
def test_other_folders_are_refused(tmp_path: Path, index: str | None, message: str) -> None:
    if index is not None:
        (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(ValueError, match=message):
        FolderPainter.load(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "side", "more", "painter"),
    [
        (".jpg", 64, {}, "paste"),
        (".JPEG", 193, {}, "paste"),
        (".png", 193, {}, "paste"),
        (".webp", 193, {}, "paste"),
        (".png", 192, {}, "bifrost"),
        ("rendered.png", 193, {}, "bifrost"),
        (".jpg", 193, {"compat": "bifrost"}, "bifrost"),
        (".png", 193, {"model": Path("assets/tiny/compositor")}, "bifrost"),
        (".png", 193, {"painter": "bifrost"}, "bifrost"),
    ],
    ids=str,
)
def test_auto_says_who_paints_a_photograph(
    suffix: str, side: int, more: dict[str, Any], painter: str, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    path = tmp_path / f"room{suffix}"
    pixels_u8 = np.full((48, side, 3), 90, np.uint8)
    mark = False if "rendered" in suffix else None
    path.write_bytes(encode_image(LoadedImage(pixels_u8, photograph=mark), path.suffix))
    settings = settings_of(**{"painter": "auto", **more}, background=path)
    assert choose_painter(settings, load_models(settings), read_image(path)).painter == painter
    assert ("the small compositor knows rendered solids only" in caplog.text) == (painter == "paste")


def test_an_image_in_memory_is_a_photograph_by_its_size(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path))
    for side, painter in ((192, "bifrost"), (193, "paste")):
        settings = settings_of("auto", background=np.full((side, 40, 3), 90, np.uint8))
        background = read_image(settings.background)
        assert choose_painter(settings, load_models(settings), background).painter == painter


def test_one_eraser_serves_composites_and_layers(monkeypatch) -> None:
    loads, settings = [], settings_of("paste")
    monkeypatch.setattr(Eraser, "load", lambda source, **more: loads.append(source) or object())
    networks = JobNetworks()
    layers = networks.eraser("opencv", settings.device)
    assert networks.of(settings).eraser("opencv") is layers
    assert (
        networks.of(replace(settings, offload=True)).eraser("opencv") is layers
    )  # other settings, same network
    assert networks.eraser("exemplar", settings.device) is not layers
    assert loads == ["opencv", "exemplar"]


def test_compat_refuses_other_painters() -> None:
    with pytest.raises(ValueError, match="--compat is about the compositor: .* --painter paste"):
        settings_of("paste", compat="bifrost")


def test_relighting_follows_the_light_within_bounds() -> None:
    thing, rng = np.full((4, 4, 3), 100, np.uint8), np.random.default_rng(0)
    neutral = rng.integers(0, 200, (40, 40, 3)).astype(np.uint8)
    warm = np.clip(neutral * np.array([1.2, 1, 0.6]), 0, 255).astype(np.uint8)
    assert np.array_equal(relight(thing, LoadedImage(neutral), False, neutral), thing)
    red, _, blue = relight(thing, LoadedImage(neutral), False, warm)[0, 0]
    assert red > 100 > blue
    dark = relight(thing, LoadedImage(neutral), False, np.zeros_like(neutral))
    assert dark.min() > 80  # of 100: bounded
    assert relight(thing, LoadedImage(neutral), True, warm) is thing
