"""Settings: a dataclass filled from YAML and overrides; a mistake is one line that names its place."""

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.settings.config import (
    Layer,
    dump_yaml,
    load_config,
    merge_layers,
    nearest,
    read_config,
    to_plain,
)
from tests.job_settings import Job, Optim, write


def refused(path: Path | None, *overrides: str) -> str:
    with pytest.raises(ValueError, match=".") as caught:
        load_config(Job, path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_later_layers_win_and_mappings_are_merged(tmp_path):
    path = write(
        tmp_path,
        top="base: sub.yaml\nstrength: 0.3\noptim: {warm: true}\n",
        sub="base: low.yaml\nimage: sub.png\nstrength: 0.2\noptim: {rate: 0.5}\n",
        low="image: low.png\nseeds: [1, 2]\nweights: {depth: 2}\n",
    )
    job = load_config(Job, path, ["optim.rate=3e-4", "size=32,48"])
    assert job.image == Path("sub.png")
    assert (job.strength, job.optim) == (0.3, Optim(rate=3e-4, warm=True))
    assert job.seeds == [1, 2]
    assert job.weights == {"detail": 1.0, "depth": 2.0}
    assert job.size == (32, 48)
    assert isinstance(job.size, tuple)


def test_base_is_relative_to_the_file_that_names_it(tmp_path):
    (tmp_path / "tiny").mkdir()
    write(tmp_path, low="image: a.png")
    assert load_config(Job, write(tmp_path / "tiny", top="base: ../low.yaml")).image == Path("a.png")


def test_result_is_a_plain_frozen_dataclass_and_defaults_are_not_shared():
    one, two = (load_config(Job, None, ["image=a.png"]) for _ in range(2))
    assert type(one) is Job
    one.seeds.append(7)
    assert two.seeds == [0]
    with pytest.raises(FrozenInstanceError):
        one.mode = "place"  # type: ignore[misc]


def test_layers_after_a_mistake_start_from_the_same_defaults():
    right = Layer({"image": "a.png", "optim": {"rate": 0.5}, "weights": {"depth": 2}})
    before = merge_layers(Job, [Layer({"image": "a.png"})])
    with pytest.raises(ValueError, match="seeds must be int"):
        merge_layers(Job, [right, Layer({"strength": 0.1, "seeds": ["x"]})])
    assert merge_layers(Job, [right]).optim == Optim(rate=0.5)
    assert merge_layers(Job, [Layer({"image": "a.png"})]) == before


def test_optional_section_is_none_until_a_key_of_it_is_set():
    assert load_config(Job, None, ["image=a"]).teacher is None
    assert load_config(Job, None, ["image=a", "teacher.rate=1"]).teacher == Optim(rate=1.0)
    assert load_config(Job, None, ["image=a", "teacher.rate=1", "teacher=none"]).teacher is None


@pytest.mark.parametrize("text", ["a: b", "[x].png", "null", "1e-4", "a=b", "a,b", "true", "{", "#"])
def test_override_of_a_text_is_taken_literally(text):
    assert load_config(Job, None, ["image=a", f"prompt={text}"]).prompt == text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["missing image"]),
        ("image: a\nstrenght: 1", ["'strenght'", "did you mean 'strength'"]),
        ("image: a\nrate: 1", ["'rate'", "did you mean 'optim.rate'"]),
        ("image: a\noptim: {rat: 1}", ["'optim.rat'", "did you mean 'optim.rate'"]),
        ("image: a\nstrength: 1.5", ["strength must be in [0, 1]", "1.5"]),
        ("image: a\nstrength: .nan", ["strength must be in [0, 1]", "nan"]),
        ("image: a\noptim: {rate: -1}", ["optim.rate must be at least 0", "-1"]),
        ("image: a\nbox: [0, 0, 1, 2]", ["box must be in [0, 1]", "2"]),
        ("image: a\nweights: {depth: -1}", ["weights must be at least 0"]),
        ("image: a\nsize: [64]", ["size must be int,int", "64"]),
        ("image: a\nsize: 64", ["size must be int,int"]),
        ("image: a\nstrength: much", ["strength must be float", "'much'"]),
        ("image: a\nseeds: [1.5]", ["seeds must be int"]),
        ("image: a\nseeds: [1]\nsize: [a, 2]\nstrength: much", ["size must be int,int"]),
        ("image: a\noptim: {warm: true, rate: fast}\nsize: 64", ["optim.rate must be float", "'fast'"]),
        ("image: a\nteacher: {rate: 1, warm: 7.5}\nseeds: []", ["teacher.warm must be true or false", "7.5"]),
        ("image: a\nstrength: true", ["strength must be float", "True"]),
        ("image: a\noptim: 3", ["optim must be a mapping"]),
        ("image: a\nmode: palce", ["unknown mode 'palce'", "did you mean 'place'", "id-transfer"]),
        ("image: a\nmode: replace", ["mode replace needs a box"]),
        ("image: a\nprompt: ${nothing}", ["nothing"]),
        ("image: a\nimage: b", ["duplicate key", "line 2"]),
        ("image: [", ["line"]),
        ("- a", ["a mapping of keys", "list"]),
        ("base: [a]", ["base must be the name of one YAML file"]),
        ("base: gone.yaml", ["gone.yaml", "base of", "does not exist"]),
        ("base: wrong.yaml", ["`base:`", "comes back"]),
    ],
)
def test_a_wrong_file_is_named_with_the_key(tmp_path, text, parts):
    message = refused(write(tmp_path, wrong=text))
    for part in ["wrong.yaml", *parts]:
        assert part in message


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("strength", "key=value"),
        ("=3", "key=value"),
        ("strength=2", "override strength=2: strength must be in [0, 1]"),
        ("optim.rat=2", "did you mean 'optim.rate'"),
        ("box=0,1", "box must be float,float,float,float, got 0,1"),
        ("seeds=[1", "cannot read '[1'"),
    ],
)
def test_a_wrong_override_is_named(override, part):
    assert part in refused(None, "image=a", override)


@pytest.mark.parametrize(
    "text", ["${oc.env:HOME}", "a ${mode} b", "\\${mode}", "\\\\${", "${", "$5 {a}", "a\\b"]
)
@pytest.mark.parametrize("source", ["layer", "flags", "override", "json"])
def test_only_yaml_files_refer_to_the_environment_and_to_other_keys(tmp_path, text, source):
    """A request or a recipe would else read the environment of whoever runs it."""
    values = {"image": text, "prompt": text, "names": [text, "b"]}
    if source == "json":
        (tmp_path / "a.json").write_text(json.dumps(values))
        job = read_config(Job, tmp_path / "a.json")
    elif source == "override":
        job = load_config(Job, None, [f"image={text}", f"prompt={text}", f"names={text},b"])
    else:
        job = merge_layers(Job, [Layer(values, flags=source == "flags")])
    assert (job.image, job.prompt, job.names) == (Path(text), text, (text, "b"))
    (tmp_path / "a.yaml").write_text(dump_yaml(job))
    assert load_config(Job, tmp_path / "a.yaml") == job


def test_yaml_files_refer_to_other_keys(tmp_path):
    assert load_config(Job, write(tmp_path, a="image: ${prompt}.png\nprompt: b")).image == Path("b.png")


def test_the_base_is_blamed_for_its_own_mistake(tmp_path):
    message = refused(write(tmp_path, top="base: low.yaml\nstrength: 1", low="image: a\nstrength: 9"))
    assert "low.yaml" in message
    assert "top.yaml" not in message


def test_check_settings_refuses_values_given_from_python():
    for wrong in [{"strength": 2.0}, {"mode": "pace"}, {"optim": Optim(betas=(0.9, 2.0))}]:
        with pytest.raises(ValueError, match="must be|unknown"):
            Job(image=Path("a"), **wrong)


def test_nearest_names_what_is_close_and_what_is_allowed():
    assert nearest("ddmi", ["ddim", "unipc"], "scheduler") == (
        "unknown scheduler 'ddmi'; did you mean 'ddim'? allowed: ddim, unipc"
    )
    assert "did you mean" not in nearest("zzz", ["ddim", "unipc"])
    assert "(40 in all)" in nearest("x", [f"name{i}" for i in range(40)])


unit = st.floats(0, 1)
# `${` starts an interpolation in OmegaConf, and `???` is a missing value there.
words = st.text(st.characters(codec="utf-8"), max_size=12) | st.text("$\\{}ab:.", max_size=12)
words = words.filter(lambda text: text != "???")
jobs = st.builds(
    Job,
    image=st.from_regex(r"[a-z]{1,9}(/[a-z]{1,9})?\.png", fullmatch=True).map(Path),
    mode=st.sampled_from(["place", "id-transfer"]),
    size=st.tuples(st.integers(8, 4096), st.integers(8, 4096)),
    box=st.none() | st.tuples(unit, unit, unit, unit),
    strength=unit,
    prompt=words,
    names=st.lists(words, max_size=3).map(tuple),
    seeds=st.lists(st.integers(-(2**63), 2**63), max_size=3),
    weights=st.fixed_dictionaries({"detail": unit, "depth": unit}),
    optim=st.builds(Optim, rate=st.floats(0, allow_infinity=False, allow_nan=False), warm=st.booleans()),
    teacher=st.none() | st.builds(Optim, warm=st.booleans()),
)


@settings(max_examples=40)
@given(jobs)
def test_yaml_round_trip_gives_an_equal_object(tmp_path_factory, job):
    path = write(tmp_path_factory.mktemp("trip"), job=dump_yaml(job))
    assert load_config(Job, path) == job
    assert json.loads(json.dumps(to_plain(job))) == to_plain(job)


def test_to_plain_refuses_what_is_no_setting():
    with pytest.raises(ValueError, match="object"):
        to_plain({"a": object()})
