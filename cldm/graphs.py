"""The networks of a sampling loop by OpenVINO on a CPU: one graph that is written once, beside the model;
and by torch.compile, which compiles their transformer blocks in place.

The graph holds UNet and both control branches. What a step runs is cut out of it when it is read: a branch,
the UNet, or the part of it that reuses deep features. So every `--speed` runs what it runs by torch, a branch
of weight 0 costs nothing, and the weights lie on disk once. A graph takes one row; several go through it one
after the other, which costs a CPU nothing at full size, and each gives what it gives alone.
Legend: n images, c channels, h w latent pixels, t tokens.
"""

import hashlib
import inspect
import logging
import sysconfig
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

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
GRAPH, VERSION = "graph.xml", 2  # of a graph's folder; of its inputs and outputs
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


class WholeStep(nn.Module):
    """What the graph computes; all that goes in and comes out is float32, whatever it computes in."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.unet, self.detail, self.depth = model.unet, model.detail, model.depth

    def forward(
        self, x: Tensor, t: Tensor, tokens: Tensor, detail: Tensor, depth: Tensor
    ) -> tuple[Tensor, ...]:
        """Noise or velocity, what enters each last layer, residuals of both branches, their sums."""
        dtype = self.unet.conv_in.weight.dtype
        x, tokens, detail, depth = (value.to(dtype) for value in (x, tokens, detail, depth))
        branches = self.detail(detail, t, tokens), self.depth(depth, t, tokens)
        residuals = [[value.float() for value in branch] for branch in branches]
        sums = [one + other for one, other in zip(*residuals, strict=True)]
        both = predict_in_parts(self.unet, x, t, tokens, [value.to(dtype) for value in sums], None)
        return both[0].float(), *(value.float() for value in both[1]), *residuals[0], *residuals[1], *sums

    def names(self, wanted: str = "") -> list[str]:
        """Of what comes out, in its order, or of those that are called so."""
        residuals = range(len(self.detail.net.controlnet_down_blocks) + 1)
        several = {"entering": range(len(self.unet.up_blocks[-1].resnets)), "detail": residuals,
                   "depth": residuals, "residual": residuals}  # fmt: skip
        names = {name: [f"{name}.{index}" for index in indexes] for name, indexes in several.items()}
        return names[wanted] if wanted else ["prediction", *sum(names.values(), [])]


class Graphs:
    """The compiled parts of one compositor's graph, each compiled when it is first needed.

    model: a `cldm.model.Compositor`; folder: that it came from, the graph lies in FOLDER.openvino
    """

    def __init__(self, model: Any, folder: Path) -> None:
        self.step, self.folder, self.precision = WholeStep(model).eval(), folder, PRECISIONS[model.dtype]
        self.compiled: dict[Any, Any] = {}
        self.lock = threading.Lock()  # a graph serves one thread at a time
        # As the control branches: (embedding, t, tokens) -> residuals.
        self.detail, self.depth = (partial(self.branch, name) for name in ("detail", "depth"))

    def branch(self, name: str, embedding: Tensor, t: Tensor, tokens: Tensor) -> list[Tensor]:
        """As a control branch."""
        return self.run(self.step.names(name), t, {name: embedding, "tokens": tokens})

    def predict(
        self, x: Tensor, t: Tensor, tokens: Tensor, residuals: Sequence[Tensor], deep: Tensor | None,
        layers: int = 0,
    ) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
        """As `predict_in_parts` of the UNet."""
        given = {"x": x, "tokens": tokens} | dict(zip(self.step.names("residual"), residuals, strict=True))
        entering = self.step.names("entering")
        if deep is not None:
            given[entering[-min(layers, len(entering))]] = deep
        prediction, *entered = self.run(["prediction", *(entering if deep is None else [])], t, given)
        return prediction, entered

    def run(self, names: list[str], t: Tensor, given: dict[str, Tensor]) -> list[Tensor]:
        """The outputs of these names for n rows, float32. given: x or a hint first, then all that it takes"""
        size, rows = (*next(iter(given.values())).shape[2:], given["tokens"].shape[1]), []
        with self.lock:
            if (key := (*names, *given, *size)) not in self.compiled:
                self.compiled[key] = self.load(names, list(given), size)
            for row in range(len(given["tokens"])):
                alone = {name: value[row : row + 1].float().contiguous() for name, value in given.items()}
                alone["t"] = t.float().reshape(())
                found = self.compiled[key]({name: value.numpy() for name, value in alone.items()})
                rows.append([torch.from_numpy(found[name].copy()) for name in names])
        return [torch.cat(each) for each in zip(*rows, strict=True)]

    def load(self, names: list[str], given: list[str], size: tuple[int, ...]) -> Any:
        """What computes `names` from `given`, out of the graph for (h, w, t), which is written if need be."""
        parts = [self.folder / name for name in ("unet", "control_detail", "control_depth")]
        weights = [{**hash_folder(part), **hash_folder(part, "config.json")} for part in parts]
        about = {"version": VERSION, "size": size, "precision": self.precision,
                 "versions": library_versions("openvino"), "weights": weights}  # fmt: skip
        digest = hashlib.sha256(json_bytes(about)).hexdigest()[:16]
        place = self.folder.with_name(f"{self.folder.name}.openvino") / digest
        with held(place.with_name(f".{place.name}.made.lock"), wait=True):  # another process may make it
            if not place.is_dir():
                log.info("%s: is written once, for --engine openvino", place)
                with folder_written_whole(place) as partial_folder:
                    with ThreadPoolExecutor(1) as free:  # of the modes of torch in which this thread is
                        free.submit(write_graph, self.step, size, partial_folder / GRAPH).result()
                    write_json(partial_folder / "about.json", about)
        return compiled(place / GRAPH, self.precision, names, given)


def write_graph(step: WholeStep, size: tuple[int, ...], path: Path) -> None:
    """Write the graph for (h, w, t), path.xml, and its weights, path.bin."""
    openvino, config = find_openvino(), step.unet.config
    (h, w, t), channels = size, config.block_out_channels[0]
    shapes = {"x": (1, config.in_channels, h, w), "t": (), "tokens": (1, t, config.cross_attention_dim),
              "detail": (1, channels, h, w), "depth": (1, channels, h, w)}  # fmt: skip
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # about shapes, which are fixed
        graph = openvino.convert_model(step, example_input=tuple(map(torch.zeros, shapes.values())))
    for ports, names in ((graph.inputs, shapes), (graph.outputs, step.names())):
        for port, name in zip(ports, names, strict=True):
            port.tensor.set_names({name})
    graph.reshape({name: openvino.PartialShape(list(shape)) for name, shape in shapes.items()})
    openvino.save_model(graph, path, compress_to_fp16=False)


def compiled(path: Path, precision: str, names: Sequence[str], given: Sequence[str]) -> Any:
    """What computes the outputs `names` from `given`, ready for as many threads as torch has.

    precision: one of PRECISIONS' values; given: inputs of the graph, or outputs, which then are inputs
    """
    openvino = find_openvino()
    core, made = openvino.Core(), openvino.opset13
    graph = core.read_model(path)
    inputs = [port.node for port in graph.inputs if port.any_name in (*given, "t")]
    for name in (port.any_name for port in graph.outputs if port.any_name in given):
        value = graph.output(name).node.input_value(0)
        if value.node.get_type_name() == "Convert":  # to float32, for the output alone
            value = value.node.input_value(0)
        inputs.append(made.parameter(value.partial_shape, openvino.Type.f32))
        inputs[-1].output(0).tensor.set_names({name})
        for reader in value.get_target_inputs():
            reader.replace_source_output(made.convert(inputs[-1], value.element_type).output(0))
    part = openvino.Model([graph.output(name).node for name in names], inputs)
    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY",
               "INFERENCE_PRECISION_HINT": precision}  # fmt: skip
    return core.compile_model(part, "CPU", options)
