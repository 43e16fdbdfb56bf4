"""Where a composite goes: the PNG with its recipe, the report beside it, and what must not be overwritten."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from compose.pipeline import Result
from ldm.result import result_paths, save_result


def beside(out: Path, ending: str) -> Path:
    """outputs/a.png, "_sheet.png" -> outputs/a_sheet.png"""
    return out.with_name(out.stem + ending)


def output_paths(out: Path, count: int, inputs: Collection[Path] = ()) -> list[Path]:
    """One PNG per sample; refuses, before any work, a place that cannot be written or holds an input."""
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; it must name a .png file")
    paths = [out] if count == 1 else [beside(out, f"_{index}.png") for index in range(count)]
    targets = [beside(out, "_sheet.png"), *(target for path in paths for target in result_paths(path))]
    for target in targets:
        if target.is_dir():
            raise ValueError(f"--out {out}: {target} is a folder")
        if target.resolve() in {source.resolve() for source in inputs}:
            raise ValueError(f"--out {out}: {target} is one of the inputs and would be overwritten")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"--out {out} cannot be written: {folder} is not a writable folder")
    return paths


def save(result: Result, index: int, path: Path, job: str | None = None) -> None:
    """One sample: the PNG with its recipe, the JSON report beside it. job: says what it is the result of."""
    recipe = {**result.recipe, "sample": index, "seed": result.seeds[index]}
    report = {**result.report, "seed": result.seeds[index], "drift": result.report["drift"][index]}
    if job is not None:
        report["job"] = job
    save_result(path, result.images_u8[index], recipe, report, result.alpha_u8, result.icc_profile)


def with_placement(result: Result, placement: dict[str, Any] | None) -> Result:
    """A result that tells, like the one it repeats, how a sentence was understood."""
    if placement is None:
        return result
    report = {**result.report, "placement": placement}
    return replace(result, recipe={**result.recipe, "placement": placement}, report=report)
