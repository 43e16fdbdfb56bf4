"""The open benchmark of composites: make its manifest, check the files, turn it into jobs (docs/datasets.md).

With the 30 objects of DreamBooth, 30 backgrounds give the 900 pairs of Bifrost's protocol and 80 the 2,400 of
AnyDoor's; their own backgrounds were never published.
"""

import json
import logging
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm.auto import tqdm

from compose.benchmark.settings import ScoreSettings
from datasets.benchmark import Instances, file_path, read_benchmark, read_benchmark_objects, write_benchmark
from ldm.images import read_image
from ldm.registry.models import depth_for_photographs
from ldm.result import write_result
from ldm.settings.cli import command, new_app, run_module
from llava_bifrost.language.instruction import Request, make_instruction

log = logging.getLogger(__name__)

InstancesFile = Annotated[Path, typer.Option(help="COCO instances JSON", metavar="FILE")]
Images = Annotated[
    Path, typer.Option("--images", "--pictures", help="folder of its images", metavar="FOLDER")
]
Objects = Annotated[Path, typer.Option(help="folder of CONCEPT/*.png cut-outs", metavar="FOLDER")]
ManifestFile = Annotated[Path, typer.Argument(help="the manifest", metavar="MANIFEST")]
Out = Annotated[Path, typer.Option(help="file to write", metavar="FILE")]


def sentence(noun: str, relation: str, anchor: str) -> str:
    """The instruction of a case, in the published form."""
    words = f"to the {relation}" if relation in ("left of", "right of") else relation
    return make_instruction(Request(noun, ((words, anchor),))) + "."


def build(
    instances: InstancesFile,
    images: Images,
    objects: Objects,
    out: Out,
    classes: Annotated[Path | None, typer.Option(help="JSON of concept -> noun", metavar="FILE")] = None,
    backgrounds: Annotated[int, typer.Option(help="how many images", min=1)] = 30,
    seed: Annotated[int, typer.Option(help="seed of the draws", min=0)] = 0,
) -> None:
    """Write the manifest: every object in every background, with box, relation and instruction."""
    concepts, roots = read_benchmark_objects(objects, classes), {"pictures": images, "objects": objects}
    cases = Instances(instances).draw_cases(concepts, backgrounds, seed, sentence)
    files = write_benchmark(out, f"dreambooth-coco-{len(concepts)}x{backgrounds}", seed, cases, roots).files
    absent = sum(not digest for digest in files.values())
    log.info("%s: %d cases, %d files, %d of them absent and not hashed", out, len(cases), len(files), absent)


def check(manifest: ManifestFile, images: Images, objects: Objects) -> dict[str, Any]:
    """Say which files are missing or differ; exit code 1 when there are any."""
    wrong = dict(read_benchmark(manifest).differing_files({"pictures": images, "objects": objects}))
    lines = [f"{what}: {name}" for name, what in wrong.items()]
    typer.echo("\n".join(lines or ["all files are those of the manifest"]))
    return {"failed": wrong}


def dreamedit(
    source: Annotated[Path, typer.Argument(help="DreamEditBench as SHINE arranged it", metavar="FOLDER")],
    out: Annotated[Path, typer.Option(help="folder of the manifest and the cut-outs", metavar="FOLDER")],
    view: Annotated[str, typer.Option(help="which view of an object: SHINE takes 03")] = "03",
) -> None:
    """Write manifest and cut-outs of DreamEditBench, for `jobs` and `score` without --instances."""
    from compose.benchmark.dreamedit import build_dreamedit

    log.info("%s: %d cases", out / "manifest.json", len(build_dreamedit(source, out, view).cases))


def jobs(
    manifest: ManifestFile,
    images: Images,
    objects: Objects,
    out: Out,
    instances: Annotated[
        Path | None,
        typer.Option(help="COCO instances JSON; without it objects stand on the ground", metavar="FILE"),
    ] = None,
    depth_model: Annotated[Path | None, typer.Option(help="depth network folder", metavar="FOLDER")] = None,
    seed: Annotated[int, typer.Option(help="seed of every composite", min=0)] = 0,
) -> None:
    """Write one job a line for `run_inference.py batch`, with the depth that the depth network implies."""
    from ldm.experts.depth import DepthEstimator

    annotations, roots = instances and Instances(instances), {"pictures": images, "objects": objects}
    network: Any = annotations and DepthEstimator.load(depth_for_photographs(depth_model))
    estimate = lru_cache(maxsize=1)(lambda path: network.estimate(read_image(path)))
    lines = []
    for case in tqdm(read_benchmark(manifest).cases, desc="depth", disable=None):
        background = file_path(f"pictures/{case.background}", roots)
        cut_out = file_path(f"objects/{case.object}/{case.view}", roots)
        files = {"name": case.id, "background": str(background), "object": str(cut_out)}
        job: dict[str, Any] = {**files, "box": list(case.box01_xyxy), "seed": seed, "shadow": "off"}
        if isinstance(annotations, Instances):
            job["depth"] = [case.depth_in(annotations.mask(case.anchor.annotation), estimate(background))]
        lines.append(json.dumps(job) + "\n")
    write_result({out: "".join(lines).encode()})
    log.info("%s: %d jobs", out, len(lines))


def build_app() -> typer.Typer:
    app = new_app("The open benchmark of composites.")
    app.command("build")(build)
    app.command("verify")(check)
    app.command("dreamedit")(dreamedit)
    app.command("jobs")(jobs)
    app.command("score")(command(ScoreSettings, "compose.benchmark.score:score"))
    return app


if __name__ == "__main__":
    run_module(build_app)
