"""Every command finds before its work that a place cannot be written, whatever the place is called."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from compose.schema import command_modules
from ldm.settings.cli import run_app
from ldm.settings.resources import OUTPUTS, check_places, resources_named
from ldm.settings.schema import flat_settings, members
from tests.conftest import ROOT

# Names of paths that are read, or of folders that a command makes for itself.
READ = {
    "adapter", "against", "anchors", "annotations", "annotations_dir", "annotations_path",
    "background", "background_depth", "backgrounds", "base", "blind", "cache", "captions_path",
    "cases", "classes", "clip", "clip_iqa", "compose_config", "config", "config_path", "csv", "cutouts",
    "data", "data_dir", "dataset", "datasets", "depth", "depth_model", "detector", "dino", "dinov2",
    "dreamsim", "entities_dir", "evaluation", "examples", "file", "first_stage", "folder",
    "global_anns_path", "held_out", "image", "image_dir", "images", "images_dir", "inception", "inpainter",
    "instances", "job", "jobs", "locator", "lora", "manifest", "masks", "masks_dir", "model", "object",
    "object_depth", "object_mask", "object_masks", "objects", "offline", "paint_config",
    "positions", "predictions", "pretrained", "preview_vae", "prompter", "real", "results", "resume_from",
    "roberta", "root", "run", "sam", "scenes", "source", "split_df_path", "split_path",
    "squeezenet", "target_mask", "texts_dir", "vae", "validation", "vision_from", "work",
}  # fmt: skip


@cache
def bodies() -> list[tuple[str, Any]]:
    """(module and verb, typer's command) of everything that runs as a command."""
    files = sorted((ROOT / "benchmarks").glob("*.py"))
    modules = [*command_modules()]
    modules += [f"benchmarks.{file.stem}" for file in files if "run_module(build_app)" in file.read_text()]
    found = []
    for module in modules:
        program = typer.main.get_command(importlib.import_module(module).build_app())
        verbs = getattr(program, "commands", {"": program})
        found += [(f"{module} {verb}".strip(), body) for verb, body in verbs.items()]
    return found


def schema_of(body: Any) -> type | None:
    """The settings of a command, or None where typer itself reads its options."""
    inner = inspect.unwrap(body.callback)
    held = inspect.getclosurevars(inner).nonlocals
    return held.get("schema") or getattr(body, "keys", None)


def path_names(body: Any) -> Iterator[tuple[str, bool]]:
    """(name, whether settings hold it) of every path that a command takes."""
    schema = schema_of(body)
    if schema is not None:
        hints = {key: hint for key, (_, hint) in flat_settings(schema).items()}
        yield from ((key.rpartition(".")[2], True) for key, hint in hints.items() if Path in members(hint))
    for name, hint in typing.get_type_hints(inspect.unwrap(body.callback)).items():
        if hint in (Path, Path | None):
            yield name, False


def test_every_path_is_known_as_read_or_written() -> None:
    assert len(bodies()) > 80
    named = {f"{name}: {path}" for name, body in bodies() for path, _ in path_names(body)}
    unknown = {text for text in named if text.rpartition(" ")[2] not in OUTPUTS | READ}
    assert unknown == set()
    assert not OUTPUTS & READ


def test_settings_refuse_each_of_them_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    schemas = {schema for _, body in bodies() if (schema := schema_of(body)) is not None}
    checked = set()
    for schema in schemas:
        for key, (_, hint) in flat_settings(schema).items():
            if key not in OUTPUTS or Path not in members(hint):
                continue
            settings = object.__new__(schema)
            object.__setattr__(settings, key, tmp_path / "file" / "a.json")
            flag = f"--{key.replace('_', '-')} .*file is not a writable folder"
            with pytest.raises(ValueError, match=flag), resources_named(settings):
                pytest.fail("the work began")
            checked.add(key)
    assert checked == OUTPUTS


def test_commands_of_plain_options_refuse_them_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    plain = [(name, body) for name, body in bodies() if ("out", False) in path_names(body)]
    assert len(plain) > 15
    for name, body in plain:
        given = body.callback
        body.callback = lambda name=name, **more: pytest.fail(f"{name} began")
        try:
            check_places(body)
            with pytest.raises(ValueError, match="--out .* cannot be written: .*file is not a writable"):
                body.callback(out=tmp_path / "file" / "a.json")
        finally:
            body.callback = given


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("benchmarks.scaling", ["--out", "{}"]),
        ("scripts.docs.make_teaser", ["--out", "{}"]),
        ("datasets.uvo_process", ["video.json", "{}"]),
        ("inpainting.models.text_to_image.test", ["compute", "--table", "--out", "{}"]),
        ("cldm.convert.__main__", ["dpt", "--source", "a", "--out", "b", "--report", "{}"]),
        ("inpainting.data.downloader", ["download-and-save-images-wikiart-v2", "--failures", "{}"]),
    ],
)
def test_the_message_is_one_line(tmp_path: Path, monkeypatch, capsys, module: str, words: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    build = importlib.import_module(module).build_app
    assert run_app(build, [word.format("file/a.json") for word in words]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "file/a.json cannot be written: " in shown
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
