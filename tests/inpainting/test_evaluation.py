"""The verbs over the test paintings: shards, interruptions, names, masks, prompts, reports, the table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.small_models import write_clip
from inpainting.config_path import HERE
from inpainting.models.text_to_image.config import PAPER_ROWS, PaintingsConfig
from inpainting.models.text_to_image.evaluation import compute as computing
from inpainting.models.text_to_image.evaluation.compute import compute, paper_table
from inpainting.models.text_to_image.evaluation.generate import fill_paintings
from inpainting.models.text_to_image.evaluation.measure import (
    Backbones,
    ImageMetrics,
    InpaintedImage,
    measure_images,
)
from inpainting.models.text_to_image.test import build_app
from ldm.images import read_image, write_png
from ldm.settings.cli import run_app
from ldm.settings.config import load_config
from tests.conftest import ROOT
from tests.inpainting.small_paintings import SIDE, write_inpainter, write_paintings
from tests.ldm.small_metrics import write_squeezenet

CONFIGS = HERE / "text_to_image" / "test"
STEMS = [f"test_{k}" for k in range(4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, data/ with 4 test images of 1, 2, 3 and 1 regions, and networks that judge."""
    folder = tmp_path_factory.mktemp("inpaint")
    write_inpainter(folder / "model")
    write_paintings(folder / "data", {"test": 4})
    write_clip(folder / "clip")
    write_squeezenet(folder / "squeezenet.pth")
    return folder


def small(folder: Path, out: Path) -> list[str]:
    """Overrides that make a published configuration small."""
    judges = [f"backbones.clip={folder / 'clip'}", f"backbones.clip_iqa={folder / 'clip'}"]
    judges += [f"backbones.squeezenet={folder / 'squeezenet.pth'}"]
    judges += [f"backbones.inception={folder / 'none.pth'}"]
    places = [f"output_dir={out}", f"pretrained={folder / 'model'}", f"data.data_dir={folder / 'data'}"]
    sizes = [f"data.resolution={SIDE}", "workers=0", "batch=3", "resamples=50", "dtype=fp32"]
    return [*places, *sizes, *judges, "lora=null", "paint.scheduler=ddim", "paint.steps=2"]


def config(folder: Path, out: Path, name: str = "sd_2_inp_rca", *changes: str) -> PaintingsConfig:
    return load_config(PaintingsConfig, CONFIGS / f"{name}.yaml", [*small(folder, out), *changes])


def images(out: Path) -> dict[str, np.ndarray]:
    return {path.stem: read_image(path).rgb_u8 for path in sorted(out.glob("*.png"))}


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """All images by one process."""
    fill_paintings(config(folder, folder / "whole"))
    return folder / "whole"


def test_the_same_images_whatever_the_shards_and_batches(folder: Path, whole: Path, tmp_path: Path):
    assert list(images(whole)) == STEMS
    assert {one.shape for one in images(whole).values()} == {(SIDE, SIDE, 3)}
    for shard in ((1, 2), (0, 2)):
        fill_paintings(config(folder, tmp_path, "sd_2_inp_rca", "batch=1"), shard)
    for stem, image in images(tmp_path).items():
        assert np.abs(image.astype(int) - images(whole)[stem]).max() <= 1, stem


def test_resuming_fills_the_gaps_and_leaves_the_rest_alone(folder: Path, whole: Path, tmp_path: Path):
    fill_paintings(config(folder, tmp_path), (0, 2))
    assert list(images(tmp_path)) == ["test_0", "test_2"]
    marked = (tmp_path / "test_0.png").stat().st_mtime_ns
    (tmp_path / "test_2.png").unlink()
    fill_paintings(config(folder, tmp_path))
    assert (tmp_path / "test_0.png").stat().st_mtime_ns == marked
    for stem in STEMS:
        assert np.abs(images(tmp_path)[stem].astype(int) - images(whole)[stem]).max() <= 1, stem
    (tmp_path / "masks.json").unlink()
    with pytest.raises(ValueError, match="begun with another seed"):
        fill_paintings(config(folder, tmp_path, "sd_2_inp_rca", "seed=7"))
    with pytest.raises(ValueError, match="begun with another paint"):
        fill_paintings(config(folder, whole, "sd_2_inp_rca", "paint.steps=3"))


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / CONFIGS).glob("*.yaml")))
def test_every_published_configuration_paints(folder: Path, whole: Path, name: str, tmp_path: Path):
    """Each differs from rectified attention with captions, except where only the trained weights differ."""
    changes = ["texts_dir=null"] if name.endswith("gen") else []
    fill_paintings(config(folder, tmp_path, name, *changes), one_by_one=name.endswith("repeated"))
    same = all(np.array_equal(images(tmp_path)[stem], images(whole)[stem]) for stem in STEMS)
    assert same == ("rca" in name)


def test_commands(folder: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    path = "models/configs/text_to_image/test/sd_2_inp_rca.yaml"
    for process in ("0", "1"):
        options = ["--config-path", path, "--num-proc", "2", "--proc-idx", process]
        assert run_app(build_app, ["generate", *options, *small(folder, tmp_path / "a")]) == 0
    assert list(images(tmp_path / "a")) == STEMS
    repeated = ["generate-repeated", "--output-dir", str(tmp_path / "b"), "--num-proc", "1"]
    repeated += ["--proc-idx", "0"]
    assert run_app(build_app, [*repeated, *small(folder, tmp_path / "unused")]) == 0
    assert list(images(tmp_path / "b")) == STEMS
    assert not (tmp_path / "unused").exists()
    wrong = ["generate", "--config-path", path, "--num-proc", "2", "--proc-idx", "2"]
    assert run_app(build_app, [*wrong, *small(folder, tmp_path / "a")]) == 2
    assert "--proc-idx / --num-proc must be i/n with 0 <= i < n, got '2/2'" in capsys.readouterr().err
    assert run_app(build_app, ["compute"]) == 2
    assert "name one settings file" in capsys.readouterr().err


def test_compute_and_table(folder: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """All images, then those with several regions; what needs the missing network is named and skipped."""
    options = ["--config-path", str(CONFIGS / "sd_2_inp_rca.yaml")]
    assert run_app(build_app, ["compute", *options, *small(folder, whole)]) == 0
    assert run_app(build_app, ["compute", *options, "--only-multi-prompt", *small(folder, whole)]) == 0
    found, several = (
        json.loads((whole / name).read_text(), parse_constant=pytest.fail)
        for name in ("metrics.json", "metrics_multi.json")
    )
    assert (found["images"], found["regions"]) == (4, 7)
    assert (several["images"], several["regions"]) == (2, 5)
    assert found["fid"] is None
    assert "none.pth does not exist" in found["skipped"]["fid"]
    assert set(found["backbones"]) == {"squeezenet", "clip", "clip_iqa"}
    assert len(found["backbones"]["clip"]["sha256"]["model.safetensors"]) == 64
    assert found["n_masks_psnr_2"] is not None
    assert found["n_masks_psnr_5"] is None
    for name in ("psnr", "lpips", "clip_iqa", "clip_score_text2image", "clip_score_image2image"):
        number = found["with_intervals"][name]
        assert number["low"] <= number["value"] <= number["high"], name
        assert name in found["masked_regions_only"]
    table = ["compute", "--table", "--out", str(tmp_path / "table.md"), *options, f"output_dir={whole}"]
    capsys.readouterr()
    assert run_app(build_app, table) == 0
    text = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() == text
    assert "| RCA, no FT, published | 15.39 (28.03) |" in text
    assert "| RCA, no FT, here (n = 4; n = 2) | - | " in text
    assert f"{found['psnr']:.2f} [" in text


def test_what_is_measured_once_is_kept(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one = config(folder, tmp_path / "run", "sd_2_inp_rca", "resamples=0")
    shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("measured", "metrics*"))
    seen: list[str] = []

    def count(images: list[InpaintedImage], networks: Backbones, device: torch.device) -> list[ImageMetrics]:
        seen.extend(image.stem for image in images)
        return measure_images(images, networks, device)

    monkeypatch.setattr(computing.measure, "measure_images", count)
    first = json.loads(compute(one).read_text())
    assert json.loads(compute(one).read_text()) == first
    compute(one, only_multi_prompt=True)
    assert seen == STEMS
    stored = {path: path.read_bytes() for path in (tmp_path / "run" / "measured").iterdir()}
    for path in sorted(stored)[1:3]:
        path.unlink()
    assert json.loads(compute(one).read_text()) == first
    assert {path: path.read_bytes() for path in stored} == stored
    assert seen[4:] == STEMS[:3]  # in the batch of the first time
    write_png(tmp_path / "run" / "test_2.png", np.zeros((SIDE, SIDE, 3), np.uint8))
    (tmp_path / "run" / "measured" / "test_3.npz").write_bytes(b"cut short")
    assert json.loads(compute(one).read_text())["psnr"] != first["psnr"]
    assert seen[7:] == STEMS
    (folder / "squeezenet.pth").rename(folder / "gone.pth")
    compute(one)
    (folder / "gone.pth").rename(folder / "squeezenet.pth")
    assert seen[11:] == STEMS


def test_missing_images_are_named(folder: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    fill_paintings(config(folder, tmp_path), (0, 2))
    options = ["compute", "--config-path", str(CONFIGS / "sd_2_inp_rca.yaml")]
    assert run_app(build_app, [*options, *small(folder, tmp_path)]) == 2
    assert "2 of 4 images are missing, such as test_1.png" in capsys.readouterr().err
    assert run_app(build_app, [*options, "--partial", *small(folder, tmp_path)]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["images"] == 2


def row(
    stem: str, regions: int, error: float, pixels: int, score: list[float], shift: float = 0.0
) -> ImageMetrics:
    rng = np.random.default_rng(len(stem))
    real = rng.normal(size=(1, 3))
    return ImageMetrics(
        stem, regions, pixels, pixels // 2,
        {"squared_error": [error], "masked_squared_error": [2 * error], "clip_score_text2image": score},
        {"real": real, "fake": real + shift, "masked_real": real, "masked_fake": real},
    )  # fmt: skip


def test_numbers_are_pooled_over_pixels_and_regions(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = [row("a", 1, 100.0, 10, [0.2]), row("bb", 3, 400.0, 30, [0.3, 0.5, 0.6], 1.0)]
    monkeypatch.setattr(computing, "measure_run", lambda *args: rows)
    changes = ("resamples=0", "fid_resamples=0")
    found = json.loads(compute(config(folder, tmp_path, "sd_2_inp_rca", *changes)).read_text())
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / 325))
    assert found["masked_regions_only"]["psnr"]["value"] == pytest.approx(10 * np.log10(255**2 / 650))
    assert found["clip_score_text2image"] == pytest.approx(0.4)
    assert found["n_masks_psnr_1"] == pytest.approx(10 * np.log10(255**2 / 100))
    assert found["n_masks_clip_score_text2image_3"] == pytest.approx(1.4 / 3)
    assert found["lpips"] is None
    assert found["fid"] is not None
    assert found["masked_regions_only"]["fid"]["value"] == pytest.approx(0, abs=1e-9)


def test_table_without_runs_is_the_paper_s(tmp_path: Path):
    lines = paper_table({}).splitlines()
    assert len(lines) == 2 + len(PAPER_ROWS) == 8
    assert lines[6].startswith("| RCA-FineTuned, published | 15.32 (27.45) | 22.00 (23.74) | 14.46 (14.13) |")
    with pytest.raises(ValueError, match="run compute for HQPrompt"):
        paper_table({"HQPrompt": tmp_path})


class Recorder:
    """In the place of CLIP: keeps the images that it is shown."""

    def __init__(self) -> None:
        self.images_u8: list[np.ndarray] = []

    def images(self, images_u8: list[np.ndarray]) -> np.ndarray:
        self.images_u8 += images_u8
        return np.ones((len(images_u8), 2))

    def texts(self, texts: list[str]) -> np.ndarray:
        return np.ones((len(texts), 2))


def highlighted(image_u8: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A region as CLIP sees it in its image."""
    recorder = Recorder()
    image = InpaintedImage("a", image_u8, image_u8, [mask], ["x"])
    measure_images([image], Backbones(clip=recorder), torch.device("cpu"))
    return recorder.images_u8[0]


def test_views_of_a_region():
    image = np.full((40, 40, 3), 200, np.uint8)
    mask = np.zeros((40, 40), bool)
    mask[10:20, 15:30] = True
    shown = highlighted(image, mask)
    assert (shown[mask] == 200).all()
    assert (shown[~mask] == 20).all()
    with pytest.raises(ValueError, match="the mask is empty"):
        measure_images(
            [InpaintedImage("a", image, image, [mask & False], ["x"])], Backbones(), torch.device("cpu")
        )
    with pytest.raises(ValueError, match="the result is"):
        InpaintedImage("a", image, image[:20], [mask], ["x"])


def test_highlight_is_the_published_blur():
    """Against a Gaussian with reflected borders, written as one product of matrices."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (30, 34, 3), np.uint8)
    weights = np.exp(-0.5 * (np.arange(-7, 8) / 20.0) ** 2)
    weights /= weights.sum()
    padded = np.pad(0.1 * image.astype(np.float64), ((7, 7), (7, 7), (0, 0)), mode="reflect")
    rows = sum(w * padded[k : k + 30] for k, w in enumerate(weights))
    blurred = sum(w * rows[:, k : k + 34] for k, w in enumerate(weights))
    mask = np.zeros((30, 34), bool)
    mask[0, 0] = True
    assert np.abs(highlighted(image, mask) - blurred)[~mask].max() <= 0.51
