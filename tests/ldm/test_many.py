"""Settings of many jobs: the same settings and the same errors as one by one, without a merge for each."""

import contextlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from compose.batch import read_jobs
from compose.settings import ComposeSettings
from ldm.files import ROOT
from ldm.settings.config import Layer, layer_merger, merge_layers, yaml_layers
from tests.batches import job, write
from tests.images import Case
from tests.job_settings import Job

REQUIRED: dict[str, Any] = {"background": "a.png", "object": "b.png"}
PLACED = {**REQUIRED, "box": [0, 0.25, 0.5, 1]}
BELOW = [Layer({"seed": 4, "depth": [0.2, 0.4]}, "a.yaml: "), Layer({"device": "cpu"}, "b.yaml: ")]
TYPED: list[dict[str, Any]] = [
    PLACED,
    {**PLACED, "depth": [1], "guidance": 3, "steps": None, "offload": True},
    {**PLACED, "box": None, "target_mask": "c.png", "mode": "draw", "invert_target_mask": True},
    {**PLACED, "box_px": [1, 2, 30, 40]},  # the later of two units counts
    {**REQUIRED, "box_px": [1, 2, 30, 40], "box": [0, 0, 1, 1]},
    {**REQUIRED, "box_px": None, "box": [0, 0, 1, 1]},
    {**REQUIRED, "instruction": "Place the dog behind the sofa", "locator": "geometric", "anchors": "d.json"},
    {**PLACED, "model": "assets/tiny/compositor", "strength": 0, "detail_weight": 2},
]
CONVERTED: list[dict[str, Any]] = [
    {**PLACED, "seed": "7", "guidance": "2.5"},
    {**PLACED, "box": ["1px", "2px", "30px", "40px"]},
    {**PLACED, "depth": ["0.5"], "device": 3},
    {**PLACED, "device": "${dtype}"},
]
WRONG: list[dict[str, Any]] = [
    REQUIRED,
    {"background": "a.png", "box": [0, 0, 1, 1]},
    {**PLACED, "bax": 1},
    {**PLACED, "seed": True},
    {**PLACED, "seed": -1},
    {**PLACED, "guidance": float("nan")},
    {**PLACED, "guidance": 10**400},
    {**PLACED, "mode": "paint"},
    {**PLACED, "box": [0, 0, 1]},
    {**PLACED, "box": [0.5, 0, 0.2, 1]},
    {**PLACED, "box": "0,0,1,1"},
    {**PLACED, "depth": [0.5, 0.1]},
    {**PLACED, "depth": 0.5},
    {**PLACED, "background": None},
    {**PLACED, "object": "???"},
    {**PLACED, "object": 5},
    {**PLACED, "scheduler": "${nothing}"},
    {**PLACED, "scheduler": "fast"},
    {**PLACED, "instruction": "Place the dog"},
]


def outcome(merge: Any, values: dict[str, Any]) -> Any:
    """Settings, or the words of the error."""
    try:
        return merge(Layer(values, "line 3: "))
    except ValueError as error:
        return str(error)


def one_by_one(below: list[Layer]) -> Any:
    return lambda layer: merge_layers(ComposeSettings, [*below, layer])


@pytest.fixture(scope="module", params=[BELOW, []], ids=["over files", "alone"])
def below(request) -> list[Layer]:
    return request.param


@pytest.fixture(scope="module")
def merge(below) -> Any:
    """What has merged a layer with a box and one without already."""
    merge = layer_merger(ComposeSettings, below)
    for values in (PLACED, {**REQUIRED, "target_mask": "c.png"}):
        merge(Layer(values))
    return merge


@pytest.mark.parametrize("values", TYPED + CONVERTED + WRONG, ids=lambda values: repr(values)[:90])
def test_settings_and_errors_are_those_of_a_merge(below, merge, values) -> None:
    made, expected = outcome(merge, values), outcome(one_by_one(below), values)
    assert repr(made) == repr(expected)
    assert isinstance(made, str) == (values in WRONG)


@pytest.mark.parametrize("values", TYPED, ids=repr)
def test_a_typed_layer_needs_no_merge(monkeypatch, merge, values) -> None:
    monkeypatch.setattr(OmegaConf, "unsafe_merge", lambda *configs: pytest.fail("merged"))
    assert isinstance(merge(Layer(values)), ComposeSettings)


@pytest.mark.parametrize(
    ("below", "words"),
    [
        ([Layer({"seed": -1}, "a.yaml: ")], "a.yaml: seed must be in"),
        ([Layer({"sead": 1}, "a.yaml: ")], "a.yaml: unknown key 'sead'; did you mean 'seed'?"),
        ([Layer({"guidance": "wide"}, "a.yaml: ")], "a.yaml: guidance must be float, got 'wide'"),
        ([*BELOW, Layer({"mode": "paint"}, "a.yaml: ")], "a.yaml: unknown mode 'paint'"),
    ],
)
def test_a_mistake_below_is_that_of_every_layer(below, words) -> None:
    merge = layer_merger(ComposeSettings, below)
    for values in (PLACED, {**PLACED, "seed": 1, "mode": "place", "guidance": 2.0}):
        assert str(outcome(merge, values)).startswith(words)


@pytest.mark.parametrize(
    "first",
    [
        {**PLACED, "seed": 5, "steps": 3, "depth": [0.9]},
        {**REQUIRED, "box_px": [1, 2, 30, 40], "device": "cuda"},
        {**PLACED, "seed": "5", "model": None},
        {**PLACED, "seed": -1},
    ],
    ids=repr,
)
def test_what_a_layer_sets_does_not_reach_the_next_one(first) -> None:
    merge, expected = layer_merger(ComposeSettings, BELOW), one_by_one(BELOW)
    for values in (first, PLACED, first, TYPED[2], TYPED[3], PLACED):
        assert repr(outcome(merge, values)) == repr(outcome(expected, values))


def test_a_reference_below_follows_each_layer(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("num_samples: ${seed}\n")
    merge = layer_merger(ComposeSettings, yaml_layers(path))
    assert [merge(Layer({**PLACED, "seed": seed})).num_samples for seed in (3, 5, 7)] == [3, 5, 7]


def test_values_below_that_need_conversion_hold() -> None:
    merge = layer_merger(ComposeSettings, [Layer({"seed": "12", "depth": ["0.3"]})])
    for _ in range(2):
        made = merge(Layer(PLACED))
        assert (made.seed, made.depth) == (12, (0.3,))


def test_shipped_files_are_found_from_another_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "assets/examples").mkdir(parents=True)
    (tmp_path / "assets/examples/mine.png").touch()
    below = [Layer({"model": "assets/tiny/compositor"})]
    merge = layer_merger(ComposeSettings, below)
    names = {"background": "assets/examples/tent/room.png", "object": "assets/examples/mine.png"}
    for _ in range(2):
        made = merge(Layer({**PLACED, **names}))
        assert made == one_by_one(below)(Layer({**PLACED, **names}))
        assert made.model == ROOT / "assets/tiny/compositor"
        assert made.background == ROOT / names["background"]
        assert made.object == Path(names["object"])


def test_settings_with_sections_are_merged_as_ever() -> None:
    merge: Any = layer_merger(Job, [Layer({"optim": {"rate": 0.5}})])  # type: ignore[type-var]
    for _ in range(2):
        made = merge(Layer({"image": "a.png", "optim": {"warm": True}, "seeds": [3]}))
        assert (made.optim.rate, made.optim.warm, made.seeds) == (0.5, True, [3])


anything = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 70), st.floats(), st.text(max_size=4),
    st.sampled_from(["0.5", "place", "draw", "cpu", "none", "noise", "???", "${seed}"]),
    st.lists(st.one_of(st.floats(0, 1), st.integers(0, 2), st.sampled_from(["1px", "0.5"])), max_size=5),
)  # fmt: skip
keys = st.sampled_from([*ComposeSettings.__dataclass_fields__, "nothing"])


@settings(max_examples=4, deadline=None)
@given(st.dictionaries(keys, anything, max_size=4))
def test_any_values_end_as_in_a_merge(below, merge, values) -> None:
    values = {**PLACED, **values}
    assert repr(outcome(merge, values)) == repr(outcome(one_by_one(below), values))


@pytest.mark.parametrize("ending", [None, {"seed": True}, {"background": "gone.png"}])
def test_merges_of_a_job_file_do_not_grow_with_it(case: Case, monkeypatch, ending) -> None:
    real, calls, merges = OmegaConf.unsafe_merge, list[int](), list[int]()
    monkeypatch.setattr(OmegaConf, "unsafe_merge", lambda *configs: (calls.append(1), real(*configs))[1])
    for count in (2, 200):
        calls.clear()
        lines = [job(case, name=f"j{index}") for index in range(count)]
        path = write(case, *lines, *([job(case, **ending)] if ending else []))
        words = f"1 of {count + 1} jobs cannot be run: line {count + 1}: "
        with pytest.raises(ValueError, match=words) if ending else contextlib.nullcontext():
            assert len(read_jobs(path, Path("configs/inference.yaml"), case.folder)) == count
        merges.append(len(calls))
    assert merges[0] == merges[1] > 0


def test_a_file_that_many_jobs_name_is_looked_for_once(case: Case, monkeypatch) -> None:
    real, looked = Path.is_file, Counter[str]()
    monkeypatch.setattr(Path, "is_file", lambda path: (looked.update([path.name]), real(path))[1])
    path = write(case, *(job(case, name=f"j{index}") for index in range(30)))
    looked.clear()
    assert len({item.settings.background for item in read_jobs(path, None, case.folder)}) == 1
    assert looked[Path(job(case)["background"]).name] == 1


def test_a_file_that_is_missing_is_named_for_every_job(case: Case) -> None:
    gone = [{"background": "gone.png"}, {}, {"background": "gone.png"}, {"object": "gone.png"}]
    path = write(case, *(job(case, name=f"j{index}", **more) for index, more in enumerate(gone)))
    words = [f"line {number}: {name}: {case.folder / 'gone.png'} is not a file"
             for number, name in ((1, "background"), (3, "background"), (4, "object"))]  # fmt: skip
    with pytest.raises(ValueError, match=re.escape(f"3 of 4 jobs cannot be run: {'; '.join(words)}")):
        read_jobs(path, None, case.folder)


def test_a_relative_name_is_looked_for_below_the_root_of_its_call(case: Case, tmp_path: Path) -> None:
    path, names = write(case, job(case)), ("room.png", "depth.png", "thing.png", "mask.png")
    assert read_jobs(path, None, case.folder)
    with pytest.raises(ValueError, match=f"line 1: background: {tmp_path / 'b/room.png'} is not a file"):
        read_jobs(path, None, tmp_path / "b")
    for name in names:
        (tmp_path / name).touch()
    assert read_jobs(path, None, tmp_path)[0].settings.background == tmp_path / "room.png"
