"""The networks of a sampling loop by OpenVINO on a CPU: each a graph that is written once, beside the model;
and by torch.compile, which compiles their transformer blocks in place.

The UNet, the steps that reuse its deep features, and both control branches are graphs of their own: so every
`--speed` runs what it runs by torch, and a branch of weight 0 costs nothing. A graph takes one row; several
go through it one after the other, which costs a CPU nothing at full size, and each gives what it gives alone.
Legend: n images, c channels, h w latent pixels, t tokens.
"""

import hashlib
import inspect
import logging
import sysconfig
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from ldm.checkpoints import folder_written_whole
from ldm.files import hash_folder, json_bytes, write_json
from ldm.locks import held
from ldm.result import library_versions
from ldm.reuse import predict_in_parts

log = logging.getLogger(__name__)

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
GRAPH, VERSION = "graph.xml", 1  # of a graph's folder; of its inputs and outputs
SHAPES = 128  # of blocks, beyond which torch compiles no more; chosen: four levels, every number of rows


def find_openvino() -> Any:
    """The library; ValueError with the command that installs it where it is missing."""
    try:
        import openvino
    except ImportError:
        from ldm.doctor import requirement

        lack = f"pip install {requirement('openvino')} (requirements-extras.txt)"
        raise ValueError(f"--engine openvino: the library openvino is missing; {lack}") from None
    return openvino


def check_openvino(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse what it cannot do, before anything is loaded."""
    if device.type != "cpu":
        raise ValueError(f"--engine openvino computes on the CPU, not on {device}: add --device cpu")
    if dtype not in PRECISIONS:
        raise ValueError("--engine openvino computes in fp32 or bf16: add --dtype fp32 or bf16")
    able = find_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if (needed := PRECISIONS[dtype].upper()) == "BF16" and needed not in able:
        raise ValueError("--engine openvino: this CPU has no bf16; add --dtype fp32")


def check_compile(device: torch.device) -> None:
    """Refuse where torch cannot compile, before anything is loaded."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--engine compile works on a CPU and with CUDA, not on {device}: add --device cpu")
    headers, lack = sysconfig.get_path("include"), ""
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        lack = "no C++ compiler was found; apt install g++, or name one in CXX"
    if not Path(headers, "Python.h").is_file():
        lack = f"{headers} has no Python.h; apt install python3-dev"
    if device.type == "cuda" and not has_triton():
        lack = "Triton is missing; pip install triton"
    if "recompile_limit" not in inspect.signature(torch.compile).parameters:
        lack = f"PyTorch {torch.__version__} is too old; pip install torch==2.13.0"
    if lack:
        raise ValueError(f"--engine compile: {lack}")


def compile_blocks(*networks: nn.Module) -> None:
    """Have torch compile the transformer blocks of UNets and ControlNets, each when it first sees a shape."""
    for block in (block for network in networks for block in network.modules()):
        if isinstance(block, BasicTransformerBlock):  # as `compile_repeated_blocks` of the UNet
            block.compile(dynamic=False, recompile_limit=SHAPES)


class GraphPart(NamedTuple):
    """What a graph computes: a control branch, the UNet, or the steps that reuse its deep features."""

    name: str
    layers: int | None = None  # of the UNet, as in `predict_in_parts`
    reuses: bool = False


class GraphStep(nn.Module):
    """The work of one graph. All it takes and gives is float32, whatever it computes in."""

    def __init__(self, network: nn.Module, part: GraphPart) -> None:
        super().__init__()
        self.network, self.part = network, part

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor, more: Sequence[Tensor] = ()) -> Any:
        """more: of the UNet the residuals, before them the deep features that it reuses"""
        dtype = next(self.network.parameters()).dtype
        x, tokens, more = x.to(dtype), tokens.to(dtype), [value.to(dtype) for value in more]
        if self.part.layers is None:
            return tuple(value.float() for value in self.network(x, t, tokens))
        deep, residuals = (more[0], more[1:]) if self.part.reuses else (None, more)
        network: Any = self.network
        out = predict_in_parts(network, x, t, tokens, residuals, deep, self.part.layers)
        return tuple(value.float() for value in out[: 1 if self.part.reuses else 2])


class Graphs:
    """The compiled graphs of one compositor, each written and compiled when it is first needed.

    model: a `cldm.model.Compositor`; folder: that it came from, the graphs lie in FOLDER.openvino
    """

    def __init__(self, model: Any, folder: Path) -> None:
        self.networks = {"detail": model.detail, "depth": model.depth, "unet": model.unet}
        self.folder, self.precision = folder, PRECISIONS[model.dtype]
        self.compiled: dict[Any, Any] = {}
        self.lock = threading.Lock()  # a graph serves one thread at a time
        # As the control branches: (embedding, t, tokens) -> residuals.
        self.detail, self.depth = (partial(self.run, GraphPart(name)) for name in ("detail", "depth"))

    def predict(
        self, x: Tensor, t: Tensor, tokens: Tensor, residuals: Sequence[Tensor], deep: Tensor | None,
        layers: int = 0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As `predict_in_parts` of the UNet."""
        if deep is None:
            whole, below = self.run(GraphPart("unet", layers), x, t, tokens, *residuals)
            return whole, below
        return self.run(GraphPart("unet", layers, True), x, t, tokens, deep, *residuals)[0], deep

    def run(self, part: GraphPart, x: Tensor, t: Tensor, tokens: Tensor, *more: Tensor) -> list[Tensor]:
        """The outputs of a graph for n rows, float32."""
        time, rows = t.float().reshape(()), []
        with self.lock:
            for row in range(len(x)):
                alone = [value[row : row + 1].float().contiguous() for value in (x, tokens, *more)]
                alone.insert(1, time)
                key = (part, *(value.shape for value in alone))
                if key not in self.compiled:
                    self.compiled[key] = self.load(part, alone)
                found = self.compiled[key]([value.numpy() for value in alone])
                rows.append([torch.from_numpy(found[index].copy()) for index in range(len(found))])
        return [torch.cat(each) for each in zip(*rows, strict=True)]

    def load(self, part: GraphPart, inputs: list[Tensor]) -> Any:
        """A graph for inputs of these shapes, from its folder, which is written where it is not there."""
        folder = self.folder / ("unet" if part.name == "unet" else f"control_{part.name}")
        about = {"version": VERSION, **part._asdict(), "shapes": [list(value.shape) for value in inputs],
                 "precision": self.precision, "versions": library_versions("openvino"),
                 "weights": {**hash_folder(folder), **hash_folder(folder, "config.json")}}  # fmt: skip
        digest = hashlib.sha256(json_bytes(about)).hexdigest()[:16]
        place = self.folder.with_name(f"{self.folder.name}.openvino") / f"{part.name}-{digest}"
        with held(place.with_name(f".{place.name}.made.lock"), wait=True):  # another process may make it
            if not place.is_dir():
                log.info("%s: is written once, for --engine openvino", place)
                with folder_written_whole(place) as partial_folder:
                    step, path = GraphStep(self.networks[part.name], part), partial_folder / GRAPH
                    with ThreadPoolExecutor(1) as free:  # of the modes of torch in which this thread is
                        free.submit(write_graph, step, inputs, path).result()
                    write_json(partial_folder / "about.json", about)
        return compiled(place / GRAPH, self.precision)


def write_graph(step: GraphStep, inputs: list[Tensor], path: Path) -> None:
    """Write a graph for inputs of these shapes, path.xml, and its weights, path.bin."""
    openvino = find_openvino()
    x, t, tokens, *more = [torch.zeros(value.shape) for value in inputs]
    given = (x, t, tokens, more) if more else (x, t, tokens)
    with torch.no_grad():
        graph = openvino.convert_model(step.eval(), example_input=given)
    shapes = [openvino.PartialShape(list(value.shape)) for value in inputs]
    graph.reshape(dict(zip(graph.inputs, shapes, strict=True)))
    openvino.save_model(graph, path, compress_to_fp16=False)


def compiled(path: Path, precision: str) -> Any:
    """A graph of a file, ready for as many threads as torch has. precision: one of PRECISIONS' values"""
    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY",
               "INFERENCE_PRECISION_HINT": precision}  # fmt: skip
    return find_openvino().Core().compile_model(path, "CPU", options)
