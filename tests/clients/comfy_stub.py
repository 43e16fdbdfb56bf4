"""As much of ComfyUI's interface for nodes (V3) as the pack uses, and its way to load a pack."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any


class Interrupted(Exception):
    """ComfyUI's InterruptProcessingException."""


@dataclass
class Port:
    io_type: str
    id: str | None = None
    given: dict[str, Any] = field(default_factory=dict)


def kind(name: str, *allowed: str) -> type:
    """A type of `io`; unknown options are refused, as ComfyUI refuses them."""

    def checked(options: dict[str, Any], more: tuple[str, ...] = ()) -> dict[str, Any]:
        known = {"display_name", "optional", "tooltip", "advanced", *more}
        if unknown := options.keys() - known:
            raise TypeError(f"io.{name} has no {unknown}")
        return options

    def Input(identity: str, **options: Any) -> Port:
        return Port(name, identity, checked(options, allowed))

    def Output(identity: str | None = None, **options: Any) -> Port:
        return Port(name, identity, checked(options))

    return type(name, (), {"Input": staticmethod(Input), "Output": staticmethod(Output)})


@dataclass
class Schema:
    node_id: str
    display_name: str
    category: str
    description: str
    inputs: list[Port]
    outputs: list[Port]

    def finalize(self) -> None:
        for index, port in enumerate(self.outputs):
            port.id = port.id or f"_{index}_{port.io_type}_"
        for ports in (self.inputs, self.outputs):
            assert len({port.id for port in ports}) == len(ports), "ids must be unique"


class ComfyNode:
    @classmethod
    def GET_SCHEMA(cls) -> Schema:
        schema = cls.define_schema()  # type: ignore[attr-defined]
        schema.finalize()
        return schema


class NodeOutput:
    def __init__(self, *args: Any) -> None:
        self.args = args


class ComfyExtension:
    async def on_load(self) -> None: ...


class Comfy:
    """What a run of the pack sees: `progress` told so far, and `interrupt` after so many looks."""

    def __init__(self) -> None:
        self.progress: list[tuple[float, float]] = []
        self.looks, self.interrupt = 0, None

    def check(self) -> None:
        self.looks += 1
        if self.interrupt is not None and self.interrupt():
            raise Interrupted

    def modules(self) -> dict[str, ModuleType]:
        comfy = self

        class Execution:
            async def set_progress(self, value: float, max_value: float) -> None:
                comfy.progress.append((value, max_value))

        class ComfyAPI:
            execution = Execution()

        io, latest, management = ModuleType("io"), ModuleType("comfy_api.latest"), ModuleType("management")
        number = ("default", "min", "max", "control_after_generate")
        kinds = {"Image": (), "Mask": (), "String": ("default", "multiline"), "Int": number}
        for name, allowed in {**kinds, "Combo": ("options", "default")}.items():
            setattr(io, name, kind(name, *allowed))
        io.Schema, io.ComfyNode, io.NodeOutput = Schema, ComfyNode, NodeOutput  # type: ignore[attr-defined]
        latest.io, latest.ComfyAPI = io, ComfyAPI  # type: ignore[attr-defined]
        latest.ComfyExtension = ComfyExtension  # type: ignore[attr-defined]
        management.throw_exception_if_processing_interrupted = self.check  # type: ignore[attr-defined]
        names = ("comfy", "comfy.model_management", "comfy_api", "comfy_api.latest")
        return dict(
            zip(names, (ModuleType("comfy"), management, ModuleType("comfy_api"), latest), strict=True)
        )


async def load_pack(folder: Path) -> dict[str, Any]:
    """node_id -> class, as `nodes.load_custom_node` of ComfyUI finds them: by the path, not by sys.path."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    extension = await module.comfy_entrypoint()
    assert isinstance(extension, ComfyExtension)
    await extension.on_load()
    return {node.GET_SCHEMA().node_id: node for node in await extension.get_node_list()}
