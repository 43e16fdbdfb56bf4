"""Jobs of a batch share batches of the networks and what was read of repeated files: bytes stay the same."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from cldm.model import IdentityEncoder
from cldm.pipeline import CompositorPipeline
from compose import composer, sources
from compose.painters import at_once
from ldm.device import RowsAsAlone
from ldm.experts.depth import DepthEstimator
from ldm.files import UnwritableError
from ldm.images import read_image, write_png
from tests.batches import batch, cutouts, dreambooth, job, write
from tests.images import Case, thing


def pngs(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


def both_ways(case: Case, monkeypatch, *lines) -> tuple[dict[str, bytes], list[int]]:
    """The images of a batch, after a check that they are those of jobs one by one; pairs of each painting."""
    sizes, paint = [], CompositorPipeline.paint
    write(case, *lines)
    with monkeypatch.context() as patch:
        patch.setattr(composer, "at_once", lambda models: 1)
        patch.setattr(composer, "REMEMBERED", 0)
        assert batch(case) == 0
    alone = pngs(case.folder / "many")
    (case.folder / "many").rename(case.folder / "alone")

    def noted(self, pairs, *args, **more):
        sizes.append(len(pairs))
        return paint(self, pairs, *args, **more)

    monkeypatch.setattr(CompositorPipeline, "paint", noted)
    assert batch(case) == 0
    assert pngs(case.folder / "many") == alone
    return alone, sizes


SETTINGS = [
    {},
    {"steps": 4, "guidance": 3.0, "speed": "exact"},
    {"steps": 7, "guidance": 3.0, "speed": "balanced", "scheduler": "unipc"},
    {"steps": 7, "guidance": 3.0, "speed": "fast", "scheduler": "ddim"},
    {"steps": 5, "guidance": 2.0, "init": "paste", "strength": 0.6, "scheduler": "euler-a"},
    {"strength": 0.0, "init": "paste"},
    {"compat": "anydoor", "steps": 2},
    {"detail_weight": 0.0, "steps": 3, "guidance": 2.0},
]


def test_jobs_in_one_batch_give_the_bytes_of_jobs_alone(case: Case, monkeypatch) -> None:
    boxes = [[0.3, 0.2, 0.7, 0.9], [0.1, 0.1, 0.6, 0.8]]
    lines = [
        job(case, name=f"{kind}-{n}", box=box, **settings)
        for kind, settings in enumerate(SETTINGS)
        for n, box in enumerate(boxes)
    ]
    images, sizes = both_ways(case, monkeypatch, *lines)
    assert len(images) == len(lines)
    assert sizes == [2] * len(SETTINGS)


def test_only_jobs_with_one_sampling_share_a_batch(case: Case, monkeypatch) -> None:
    changes = [
        {},
        {"steps": 3},
        {"num_samples": 2},
        {"detail_weight": 0.5},
        {},
        {"steps": 3},
        {"painter": "paste"},
    ]
    lines = [job(case, name=f"j{n}", **change) for n, change in enumerate(changes)]
    images, sizes = both_ways(case, monkeypatch, *lines)
    assert len(images) == 8
    assert sorted(sizes) == [1, 1, 2, 2]


def test_a_large_background_is_painted_alone(case: Case, monkeypatch) -> None:
    monkeypatch.setattr("compose.painters.WHOLE", 96 * 128 - 1)
    _, sizes = both_ways(case, monkeypatch, *(job(case, name=name) for name in "abc"))
    assert sizes == [1, 1, 1]


def test_at_most_eight_jobs_go_together(case: Case, monkeypatch) -> None:
    _, sizes = both_ways(case, monkeypatch, *(job(case, name=f"{n}") for n in range(11)))
    assert sizes == [8, 3]


@pytest.mark.parametrize(
    ("device", "dtype", "size", "count"),
    [
        ("cpu", torch.float32, (96, 96), 8),
        ("cpu", torch.float32, (128, 128), 8),
        ("cpu", torch.float32, (136, 128), 1),
        ("cpu", torch.bfloat16, (96, 96), 1),
        ("cuda", torch.bfloat16, (512, 512), 8),
        ("mps", torch.float32, (96, 96), 1),
    ],
)
def test_where_a_batch_saves_time(device, dtype, size, count) -> None:
    pair = type("Pair", (), {"size": size})
    models = type("Models", (), {"device": torch.device(device), "dtype": dtype, "engine": "torch"})
    models.config = type("Config", (), {"pair": pair})
    assert at_once(models) == count


def test_what_repeated_files_give_is_computed_once(case: Case, monkeypatch) -> None:
    objects, backgrounds = cutouts(case.folder)
    rgb_u8, mask = thing()
    changed_u8 = np.where(mask[..., None], 255 - rgb_u8, rgb_u8)
    write_png(objects / "dog" / "02.png", changed_u8, alpha_u8=mask * np.uint8(255))
    other = next(backgrounds.glob("*8_GT.png"))
    write_png(other, 255 - read_image(other).rgb_u8)
    calls: list[str] = []

    def count(owner, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given: (calls.append(name), real(*given))[1])

    count(sources, "read_object")
    count(DepthEstimator, "estimate")
    count(IdentityEncoder, "forward")
    assert dreambooth(case, objects, backgrounds) == 0
    counts = {name: calls.count(name) for name in set(calls)}
    assert counts == {"read_object": 2, "estimate": 2, "forward": 3}  # the tokens of the zero image too


def test_a_failure_of_a_batch_is_that_of_its_job(case: Case, monkeypatch, caplog) -> None:
    paint = CompositorPipeline.paint

    def failing(self, pairs, seeds, *args, **more):
        if 2 in seeds:
            raise RuntimeError("the UNet gives NaN")
        return paint(self, pairs, seeds, *args, **more)

    write(case, *(job(case, name=f"j{seed}", seed=seed) for seed in range(4)))
    monkeypatch.setattr(CompositorPipeline, "paint", failing)
    assert batch(case) == 1
    assert set(pngs(case.folder / "many")) == {"j0.png", "j1.png", "j3.png"}
    assert '"j2": "the UNet gives NaN"' in (case.folder / "many" / "failed-0-of-1.json").read_text()
    assert "4 jobs in one batch: the UNet gives NaN; each alone now" in caplog.text
    assert not list((case.folder / "many").glob(".*"))


def test_an_interrupt_in_a_batch_leaves_no_lock(case: Case, monkeypatch) -> None:
    def stopped(*args, **more):
        raise KeyboardInterrupt

    write(case, *(job(case, name=name) for name in "abc"))
    monkeypatch.setattr(CompositorPipeline, "paint", stopped)
    assert batch(case) == 130
    assert not (case.folder / "many").exists()
    monkeypatch.undo()
    assert batch(case) == 0
    assert set(pngs(case.folder / "many")) == {"a.png", "b.png", "c.png"}


def test_pairs_and_seeds_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 pairs with 3 seeds; allowed: 1, or as many, up to 8"):
        CompositorPipeline.paint(None, [None, None], [0, 1, 2], None)
    with pytest.raises(ValueError, match="9 pairs with 9 seeds"):
        CompositorPipeline.paint(None, [None] * 9, list(range(9)), None)


@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize(
    "layer", [torch.nn.Conv2d(8, 16, 3, padding=1), torch.nn.Linear(6, 40)], ids=["conv", "linear"]
)
def test_rows_are_those_of_calls_of_their_own(layer, halves) -> None:
    """Rows i, i + count, ... are one job's: the call with a guided job has two rows."""
    x = torch.randn(halves * 5, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        with RowsAsAlone(5):
            together = layer(x)
        for index in range(5):
            assert torch.equal(together[index::5], layer(x[index::5].contiguous()))
        with RowsAsAlone(7):  # no such parts
            assert torch.equal(layer(x), layer(x))


def test_a_disk_that_is_full_leaves_no_lock(case: Case, monkeypatch) -> None:
    """No job can be done, and the record of failures is written once; the collector does not help."""
    write(case, *(job(case, name=name) for name in "abcd"))
    records = []

    def full(*args: object) -> None:
        records.append(args)
        if len(records) > 1:
            raise UnwritableError("no space left on the disk")

    def unsaved(*args: object) -> None:
        raise UnwritableError("no space left on the disk")

    monkeypatch.setattr("compose.batch.write_json", full)
    monkeypatch.setattr(composer, "prepare", unsaved)
    (case.folder / "many").mkdir()
    gc.disable()
    try:
        assert batch(case) == 2
        assert list((case.folder / "many").iterdir()) == []
    finally:
        gc.enable()
