"""Batches that were killed between two writes, and batches that run at the same time."""

import contextlib
import os
from pathlib import Path

import pytest

import compose.batch as batch_module
from compose import composer
from compose.batch import read_jobs
from ldm.locks import held, lock_beside
from tests.compose.test_inference_many import batch, job, made, write
from tests.images import Case


def test_a_job_is_done_only_where_image_and_report_agree(case: Case) -> None:
    """The report of this job beside the image of an earlier one, as a kill between two writes left them."""
    path, out = write(case, job(case, name="a", seed=1)), case.folder / "many" / "a.png"
    assert batch(case) == 0
    earlier = out.read_bytes()
    write(case, job(case, name="a", seed=2))
    assert batch(case) == 0
    wanted = out.read_bytes()
    assert read_jobs(path, None, case.folder)[0].is_done(out)
    out.write_bytes(earlier)
    assert not read_jobs(path, None, case.folder)[0].is_done(out)
    assert batch(case) == 0
    assert out.read_bytes() == wanted


def test_a_kill_between_a_job_and_its_lock_leaves_nothing_after_the_next_run(case: Case) -> None:
    write(case, job(case, name="a"))
    assert batch(case) == 0
    lock = lock_beside(case.folder / "many" / "a.png")
    lock.touch()
    assert batch(case) == 0
    assert not lock.exists()


@pytest.mark.parametrize("count", [2, 3])
def test_a_batch_killed_before_any_rename_of_changed_jobs_ends_right(case: Case, monkeypatch, count) -> None:
    """The jobs replace earlier results of the same names; the kill comes before rename `count`."""
    lines = [job(case, name=name, seed=1) for name in "ab"]
    write(case, *lines)
    assert batch(case) == 0
    write(case, *(line | {"seed": 2} for line in lines))
    renamed, replace = [], os.replace

    def killed(source: Path, target: Path) -> None:
        renamed.append(target)
        if len(renamed) == count:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    assert batch(case, "--overwrite") == 130
    monkeypatch.undo()
    assert batch(case, "--overwrite") == 0
    out = case.folder / "many"
    stopped = {path.name: path.read_bytes() for path in out.glob("*.png")}
    assert {path.suffix for path in out.iterdir()} == {".png", ".json"}
    for path in out.iterdir():
        path.unlink()
    assert batch(case) == 0
    assert {path.name: path.read_bytes() for path in out.glob("*.png")} == stopped


def test_a_second_batch_makes_other_jobs_and_waits_for_the_rest(case: Case, monkeypatch, caplog) -> None:
    write(case, *(job(case, name=name) for name in "abc"))
    out, order, prepare = case.folder / "many", [], composer.prepare

    def noted(settings, *args, **kwargs):
        order.append(settings.seed)
        return prepare(settings, *args, **kwargs)

    seeds = [one.settings.seed for one in read_jobs(case.folder / "jobs.jsonl", None, case.folder)]
    monkeypatch.setattr(composer, "prepare", noted)
    other = contextlib.ExitStack()
    other.enter_context(held(out / ".a.png.lock"))

    def ended(path: Path, *args: object) -> bool:
        """The other process ends when this one has made its first job."""
        if order and (out / ".a.png.lock").exists():
            other.close()
        return is_done(job_of[path.stem], path)

    is_done = batch_module.BatchJob.is_done
    job_of = {one.name: one for one in read_jobs(case.folder / "jobs.jsonl", None, case.folder)}
    monkeypatch.setattr(batch_module.BatchJob, "is_done", lambda self, path: ended(path))
    with caplog.at_level("INFO"):
        assert batch(case) == 0
    assert order == [seeds[1], seeds[2], seeds[0]]
    assert set(made(out)) == {"a.png", "b.png", "c.png"}
    assert "3 made, 0 were there, 0 failed" in caplog.text
