"""Fill the test paintings with a model, write prompts for them, measure the results (docs/paintings.md).

Every verb continues where it stopped; `--shard i/n` divides the images between machines.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from inpainting.config_path import HERE, ConfigPath, Overrides, find_config
from inpainting.models.text_to_image.config import ALL, MULTI, PaintingsConfig
from ldm.files import located, visible_files
from ldm.result import write_result
from ldm.settings.choices import RAY_HELP, shard_of
from ldm.settings.cli import new_app, run_module, takes_keys
from ldm.settings.config import load_config
from ldm.settings.later import later

EVALUATION = "inpainting.models.text_to_image.evaluation"
fill_paintings = later(f"{EVALUATION}.generate:fill_paintings")
generate_prompts = later(f"{EVALUATION}.generate:generate_prompts")
compute, paper_table = (later(f"{EVALUATION}.compute:{name}") for name in ("compute", "paper_table"))

CONFIGS = HERE / "text_to_image" / "test"
REPEATED = CONFIGS / "sd_2_inp_repeated.yaml"
TABLE = Path("outputs/inpainting_table.md")

NumProc = Annotated[int, typer.Option("--num-proc", "--num_proc", help="processes that divide the work")]
ProcIdx = Annotated[int, typer.Option("--proc-idx", "--proc_idx", help="which of them this is, from 0")]
Shard = Annotated[str, typer.Option(help="i/n, the two in one")]
Ray = Annotated[str, typer.Option(help=RAY_HELP)]


def read_run(config_path: Path, overrides: Overrides) -> PaintingsConfig:
    return load_config(PaintingsConfig, find_config(config_path), overrides or [])


def part_of(num_proc: int, proc_idx: int, shard: str) -> tuple[int, int]:
    return shard_of(shard) if shard else shard_of(f"{proc_idx}/{num_proc}", "--proc-idx / --num-proc")


def sharded(work: Callable[[PaintingsConfig, tuple[int, int], str], None]) -> Callable[..., None]:
    """The verb that does `work` on the settings of a file for one of several processes."""

    def verb(
        config_path: ConfigPath,
        num_proc: NumProc = 1,
        proc_idx: ProcIdx = 0,
        shard: Shard = "",
        ray: Ray = "",
        overrides: Overrides = None,
    ) -> None:
        work(read_run(config_path, overrides), part_of(num_proc, proc_idx, shard), ray)

    return verb


def build_app() -> typer.Typer:
    app = new_app("Fill the test paintings, write prompts for them, measure the results.")
    keys = takes_keys(PaintingsConfig)
    fill_help = "Fill the masked regions of the test images; the same command again continues."
    app.command("generate", help=fill_help, cls=keys)(sharded(fill_paintings))
    prompts_help = "Write prompts for the masked regions of the test images with LLaVA-NeXT."
    app.command("generate-prompts", help=prompts_help, cls=keys)(sharded(generate_prompts))

    @app.command("generate-repeated", cls=keys)
    def generate_repeated(
        output_dir: Annotated[
            Path | None, typer.Option("--output-dir", "--output_dir", help="folder of the images")
        ] = None,
        num_proc: NumProc = 1,
        proc_idx: ProcIdx = 0,
        shard: Shard = "",
        ray: Ray = "",
        config_path: ConfigPath = REPEATED,
        overrides: Overrides = None,
    ) -> None:
        """Fill one region after the other (baseline)."""
        config = read_run(config_path, overrides)
        config = config if output_dir is None else replace(config, output_dir=output_dir)
        fill_paintings(config, part_of(num_proc, proc_idx, shard), ray, one_by_one=True)

    @app.command("compute", cls=keys)
    def compute_metrics(
        config_path: Annotated[
            list[Path] | None,
            typer.Option(help="YAML file of settings; several with --table", metavar="FILE"),
        ] = None,
        only_multi_prompt: Annotated[
            bool, typer.Option("--only-multi-prompt", help="images with two regions or more")
        ] = False,
        partial: Annotated[bool, typer.Option("--partial", help="leave out missing images")] = False,
        table: Annotated[
            bool, typer.Option("--table", help="collate measured runs, by default those of all configs")
        ] = False,
        out: Annotated[Path, typer.Option(help="where --table writes")] = TABLE,
        overrides: Overrides = None,
    ) -> None:
        """Measure the filled images, or collate measured runs into the paper's table."""
        if table:
            measured = {}
            for path in config_path or visible_files(located(CONFIGS), "*.yaml"):
                config = read_run(path, overrides)
                if config.row and any((config.output_dir / name).is_file() for name in (ALL, MULTI)):
                    measured[config.row] = config.output_dir
            text = paper_table(measured)
            write_result({out: text.encode()})
            typer.echo(text, nl=False)
            return
        if not config_path or len(config_path) != 1:
            raise ValueError("--config-path: name one settings file, or ask for --table")
        compute(read_run(config_path[0], overrides), only_multi_prompt, partial)

    return app


if __name__ == "__main__":
    run_module(build_app)
