"""Memory and time of a conversion: a synthetic SD-2.1 UNet file of full size (3.5 GB) -> its folder.

    python -m benchmarks.convert                  (needs 9 GB of disk below --work, minutes)
    python -m benchmarks.convert --width 32       (seconds)

The file is made by one process and converted by another. Anonymous memory is what the conversion needs; pages
of the mapped file count into the resident peak as well, but the system may drop them at any time.
"""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import psutil
import typer

from benchmarks.harness import RESULTS, Out, row_of_process, sampled, write_results
from cldm.config import NetworkConfig
from ldm.settings.cli import run_module, single_app

MEGABYTE = 2**20


def convert_unet(path: Path, out: Path, network: NetworkConfig, dtype: str) -> dict[str, float]:
    """Convert, sampling this process's memory 50 times a second; MB above the start, and seconds."""
    from cldm.convert.convert import write_part
    from cldm.convert.plan import UNET, KeyCheck, empty_networks, plan_network
    from ldm.weight_files import open_weights

    model = empty_networks(network)["unet"]
    with sampled(psutil.Process().memory_info, 0.02) as memory:
        started = time.monotonic()
        check = KeyCheck(open_weights(path))
        origins = plan_network(model, UNET, check)
        check.finish()
        write_part(model, origins, out, dtype)
        seconds = time.monotonic() - started
    written = sum(file.stat().st_size for file in out.iterdir())
    sizes = {"file_mb": path.stat().st_size, "written_mb": written}
    private, resident = [each.rss - each.shared for each in memory], [each.rss for each in memory]
    sizes["peak_anonymous_mb"] = max(private) - private[0]
    sizes["peak_resident_mb"] = max(resident) - resident[0]
    return {name: round(size / MEGABYTE) for name, size in sizes.items()} | {"seconds": round(seconds, 1)}


def measure_conversion(
    width: Annotated[int, typer.Option(help="UNet width; 320 is SD 2.1", min=32)] = 320,
    work: Annotated[Path | None, typer.Option(help="folder for the files, default the system's")] = None,
    out: Out = RESULTS / "convert.json",
) -> None:
    """Measure peak memory of converting one network."""
    import torch
    from safetensors.torch import save_file

    from cldm.convert.keys import original_pieces
    from cldm.convert.plan import UNET, empty_networks

    rows, network = [], NetworkConfig(block_channels=(width, 2 * width, 4 * width, 4 * width))
    model = empty_networks(network)["unet"]  # its file has the original layout and ones for weights
    shapes, pieces = model.state_dict(), original_pieces(model)
    ones = {UNET + pieces[key].key: torch.ones(value.shape) for key, value in shapes.items()}
    with tempfile.TemporaryDirectory(dir=work) as folder:
        for suffix in (".ckpt", ".safetensors"):
            file = Path(folder) / f"unet{suffix}"
            torch.save({"state_dict": ones}, file) if suffix == ".ckpt" else save_file(ones, file)
            for dtype in ("keep", "fp16"):
                converted = Path(folder) / dtype
                row = row_of_process(convert_unet, file, converted, network, dtype)
                if "failed" in row:
                    raise RuntimeError(row["failed"])
                rows.append({"file": suffix, "dtype": dtype, **row})
                shutil.rmtree(converted)
            file.unlink()
    write_results(out, {"unet_width": width, "rows": rows})


build_app = single_app(measure_conversion)

if __name__ == "__main__":
    run_module(build_app)
