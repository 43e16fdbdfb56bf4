"""Batches and the DreamBooth test set: checked first, resumed, divided, and a failure stops nothing."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import compose.models as compose_module
from compose.batch import dreambooth_jobs, read_jobs
from compose.batch_settings import DreamBoothSettings
from ldm.images import read_image, write_png
from ldm.result import read_recipe
from ldm.settings.cli import run_app
from ldm.temporary import remove_leftovers
from run_inference import build_app
from tests.batches import HIDDEN, batch, cutouts, dreambooth, job, made, masked, write
from tests.conftest import ROOT
from tests.images import Case, room


def test_jobs_are_made_once_and_a_failure_stops_nothing(case: Case, monkeypatch) -> None:
    loads: list[str] = []
    real = compose_module.load_compositor
    monkeypatch.setattr(
        compose_module, "load_compositor", lambda *args: (loads.append("compositor"), real(*args))[1]
    )
    write(case, job(case, name="dog/a"), "", job(case, name="bad", **HIDDEN), job(case, num_samples=2))
    out = case.folder / "many"
    assert batch(case) == 1
    assert loads == ["compositor"]
    first = made(out)
    assert set(first) == {"dog/a.png", "000004_0.png", "000004_1.png"}
    failed = json.loads((out / "failed-0-of-1.json").read_text())
    assert set(failed) == {"bad"}
    assert "hide the object completely" in failed["bad"]
    assert batch(case) == 1
    assert made(out) == first
    write(case, job(case, name="dog/a"), job(case, name="bad", depth=[0.9]))
    assert batch(case) == 0
    assert made(out)["dog/a.png"] == first["dog/a.png"]
    assert (out / "bad.png").is_file()
    assert not (out / "failed-0-of-1.json").exists()


@pytest.mark.slow
def test_a_batch_killed_in_the_middle_ends_with_the_same_images(case: Case) -> None:
    names = [f"job{index}" for index in range(20)]
    write(case, *(job(case, name=name, seed=index) for index, name in enumerate(names)))
    out = case.folder / "many"
    assert batch(case) == 0
    whole = {path.name: path.read_bytes() for path in out.glob("*.png")}
    shutil.rmtree(out)
    argv = [sys.executable, "run_inference.py", "batch", str(case.folder / "jobs.jsonl"), "--out", str(out)]
    argv += ["--root", str(case.folder)]
    with subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 120
        while not list(out.glob("*.png")) and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        running.kill()
    assert 0 < len(made(out)) < len(names)
    remove_leftovers.cache_clear()  # as in a process that starts now: it may have died within a write
    assert batch(case) == 0
    assert {path.name: path.read_bytes() for path in out.glob("*.png")} == whole
    assert {path.suffix for path in out.iterdir()} == {".png", ".json"}


def test_what_has_changed_is_made_again(case: Case) -> None:
    path, out = write(case, job(case, name="a", seed=1)), case.folder / "many" / "a.png"
    assert batch(case) == 0
    first = out.read_bytes()
    assert read_jobs(path, None, case.folder)[0].is_done(out)
    write_png(case.folder / "room.png", np.flip(read_image(case.folder / "room.png").rgb_u8, 1))
    assert batch(case) == 0
    assert out.read_bytes() != first
    second = out.read_bytes()
    out.with_suffix(".json").write_text("{")  # as after a crash
    assert batch(case) == 0
    assert out.read_bytes() == second


def test_a_job_is_the_image_of_the_image_verb_and_can_be_replayed(case: Case) -> None:
    write(case, job(case, name="a", seed=4))
    assert batch(case) == case.run("--seed", "4") == 0
    one = case.folder / "many" / "a.png"
    assert np.array_equal(read_image(one).rgb_u8, read_image(case.out).rgb_u8)
    assert run_app(build_app, ["replay", str(one)]) == 0
    again = one.with_name("a_replay.png")
    assert again.read_bytes() == one.read_bytes()


def test_shards_divide_the_work_and_seeds_do_not_depend_on_it(case: Case) -> None:
    write(case, *(job(case, name=f"j{index}") for index in range(3)))
    out = case.folder / "many"
    assert batch(case, "--shard", "1/2") == 0
    assert set(made(out)) == {"j1.png"}
    assert batch(case, "--shard", "0/2") == 0
    assert set(made(out)) == {"j0.png", "j1.png", "j2.png"}
    seeds = {name: read_recipe(out / name)["seed"] for name in made(out)}
    assert len(set(seeds.values())) == 3
    kept = (out / "j1.png").read_bytes()
    shutil.rmtree(out)
    assert batch(case) == 0
    assert (out / "j1.png").read_bytes() == kept


def test_all_mistakes_are_listed_with_their_lines_before_any_work(case: Case, capsys, monkeypatch) -> None:
    monkeypatch.setattr("compose.composer.prepare", lambda *args, **kwargs: pytest.fail("worked"))
    write(
        case,
        job(case, name="fine"),
        "{",
        job(case, bax=1),
        job(case, background="gone.png"),
        job(case, name="../up"),
        job(case, name="fine"),
        job(case, box=[0.5, 0.1, 0.4, 0.2]),
        job(case, model="no/model"),
        job(case, box=None, instruction="Place the dog behind the bed", locator="no/locator"),
    )
    assert batch(case) == 2
    shown = capsys.readouterr().err
    for part in (
        "8 of 9 jobs cannot be run", "line 2: not JSON", "line 3: unknown key 'bax'", "line 4: background:",
        "line 5: name must be", "line 6: its name 'fine' gives the file fine.png", "taken by line 1;",
        "line 7:", "inverted", "line 8:", "no/model: no such model folder", "line 9: locator:",
        "no/locator is not a folder",
    ):  # fmt: skip
        assert part in shown
    assert shown.count("\n") == 1
    assert not (case.folder / "many").exists()


@pytest.mark.parametrize("flags", [["--shard", "2/2"], ["--defaults", "none.yaml"]])
def test_wrong_flags_are_refused(case: Case, capsys, flags: list[str]) -> None:
    write(case, job(case))
    assert batch(case, *flags) == 2
    assert "error: " in capsys.readouterr().err


def test_an_empty_or_missing_list_is_refused(case: Case, capsys) -> None:
    write(case, "")
    assert batch(case) == 2
    assert "there is no job in it" in capsys.readouterr().err
    assert run_app(build_app, ["batch", "none.jsonl"]) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_both_layouts_give_the_same_edit_and_names_of_their_own(case: Case) -> None:
    objects, backgrounds = cutouts(case.folder / "one")
    assert dreambooth(case, objects, backgrounds) == 0
    out = case.folder / "db"
    names = {
        f"{concept}/{number}.png" for concept in ("cat", "dog") for number in ("000000003658", "000000047948")
    }
    assert set(made(out)) == names
    box = case.report(out / "cat/000000003658.png")["box"]
    assert box == pytest.approx([50 / 128, 30 / 96, 90 / 128, 80 / 96])
    seeds = {read_recipe(out / name)["seed"] for name in names}
    assert len(seeds) == 4
    first = made(out)
    assert dreambooth(case, objects, backgrounds) == 0
    assert made(out) == first
    shutil.rmtree(out)
    objects, backgrounds, masks = masked(case.folder / "two")
    assert dreambooth(case, objects, backgrounds, "--object-masks", str(masks)) == 0
    assert set(made(out)) == {
        f"{concept}/{number}.png" for concept in ("cat", "dog") for number in ("1", "2")
    }
    assert case.report(out / "dog/1.png")["box"] == pytest.approx(box)
    case.unchanged_outside(room(), out / "dog/1.png")
    assert run_app(build_app, ["replay", str(out / "dog/1.png")]) == 0


def test_pairs_are_divided_and_seeded(case: Case) -> None:
    objects, backgrounds = cutouts(case.folder / "one")
    assert dreambooth(case, objects, backgrounds, "--shard", "3/4") == 0
    (only,) = made(case.folder / "db")
    assert only == "dog/000000047948.png"
    jobs, others = (
        dreambooth_jobs(
            DreamBoothSettings(
                objects=objects, backgrounds=backgrounds, mode="replace", model=case.model,
                depth_model=case.depth_model, seed=seed, config=None,
            )
        )
        for seed in (0, 1)
    )  # fmt: skip
    assert [one.name for one in jobs] == [one.name for one in others]
    assert all(a.settings.seed != b.settings.seed for a, b in zip(jobs, others, strict=True))
    assert jobs[3].settings.seed == read_recipe(case.folder / "db" / only)["settings"]["seed"]


def test_a_layout_that_is_not_there_is_named(case: Case, capsys) -> None:
    objects, backgrounds = cutouts(case.folder / "one")
    two_objects, two_backgrounds, masks = masked(case.folder / "two")
    for flags, reason in (
        ((objects / "gone", backgrounds), "--objects"),
        ((backgrounds, backgrounds), "need --object-masks"),
        ((objects, objects), "no NAME_mask file"),
        ((objects, two_backgrounds), "no image beach_2_GT"),
        ((two_objects, two_backgrounds, "--object-masks", str(objects)), "no mask for cat, dog"),
    ):
        capsys.readouterr()
        assert dreambooth(case, *flags) == 2
        assert reason in capsys.readouterr().err
    assert masks.is_dir()


def test_the_published_files_are_read(
    test_data: Path, small_compositor: Path, small_depth_network: Path
) -> None:
    folder = test_data / "data" / "dreambooth"
    settings = DreamBoothSettings(
        objects=folder / "AnyDoor_DreamBooth",
        backgrounds=folder / "v1_800",
        mode="replace",
        model=small_compositor,
        depth_model=small_depth_network,
        config=None,
    )
    jobs = dreambooth_jobs(settings)
    assert len({job.settings.object for job in jobs}) == 12
    assert len({job.settings.background for job in jobs}) == 4
    assert len(jobs) == 48
