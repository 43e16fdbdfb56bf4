"""The networks that the settings of a composite name, loaded once."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cldm.config import CompositorConfig, load_compositor_config, missing_parts
from cldm.graphs import Graphs, check_compile, check_openvino, compile_blocks
from cldm.model import Compositor, load_compositor
from compose.settings import COMPILE, FULL_MODEL, OPENVINO, TINY_MODEL, ComposeSettings
from ldm.checkpoints import loading
from ldm.device import pick_device, pick_dtype
from ldm.experts.depth import DepthEstimator
from ldm.experts.detect import Detector
from ldm.experts.erase import Eraser
from ldm.files import located
from ldm.latents import LatentSpace, scheduler_class
from ldm.recent import Recent
from ldm.registry.models import depth_folder, resolve_model_path, warn_of_small

if TYPE_CHECKING:
    from llava_bifrost.locator import Locator


@dataclass
class Models:
    """Compositor, depth network, locators and detectors on one device."""

    folder: Path
    depth_folder: Path
    config: CompositorConfig
    device: torch.device
    dtype: torch.dtype  # of the compositor
    offload: bool = False
    asked_dtype: str = "auto"  # of the other networks: each has its own type then
    load_in: str = ""  # 4bit or 8bit: the locator's weights
    requested: tuple[Any, ...] = ()  # what `load_models` was given: folders, device, dtype, offload ...
    engine: str = "torch"  # of the compositor's sampling
    channels_last: bool = False  # its convolutions
    loaded: dict[Any, Any] = field(default_factory=dict)  # networks by their kind and folder
    others: dict[Any, Any] = field(default_factory=dict)  # erasers and foreign painters, likewise
    recent: Recent = field(default_factory=Recent)  # what was read of files and computed of them
    residuals: Recent = field(default_factory=Recent)  # of control branches and tokens, for other seeds

    @loading()
    def once(self, folder: Path, load: Callable[..., Any], *beside: Path, **more: Any) -> Any:
        """The network of a folder, by the function that loads it."""
        if (load, folder) not in self.loaded:
            warn_of_small(folder, *beside)
            self.loaded[load, folder] = load(folder, device=str(self.device), **more)
        wrapper = self.loaded[load, folder]
        if self.offload and not quantised(wrapper):
            network_of(wrapper).to(self.device)
        return wrapper

    def eraser(self, source: str) -> Eraser:
        return load_eraser(source, self.device, self.others)

    def make_room(self) -> None:
        """With offload everything but the compositor leaves the device; what is used again comes back."""
        for key in [key for key in self.loaded if key is not Compositor] if self.offload else ():
            if quantised(self.loaded[key]):  # such weights cannot leave the GPU
                del self.loaded[key]
            else:
                network_of(self.loaded[key]).to("cpu")

    def locator(self, folder: Path) -> "Locator":
        from llava_bifrost.locator import load_locator  # not for a box

        return self.once(folder, load_locator, self.folder, dtype=self.asked_dtype, load_in=self.load_in)

    def detector(self, folder: Path) -> Detector:
        return self.once(folder, Detector.load, dtype=self.asked_dtype)

    @property
    @loading()
    def compositor(self) -> Compositor:
        """In eval mode, on the device, or on the CPU until a stage needs it."""
        self.make_room()
        if Compositor not in self.loaded:
            model, _ = load_compositor(self.folder, self.dtype)
            if self.channels_last:
                model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.loaded[Compositor] = model if self.offload else model.to(self.device)
            model.graphs = Graphs(model, self.folder) if self.engine == OPENVINO else None
            if self.engine == COMPILE:
                compile_blocks(model.unet, model.detail, model.depth)
        return self.loaded[Compositor]

    def decoder(self, folder: Path | None) -> LatentSpace:
        """The autoencoder of a folder; without one that of the compositor."""
        own = self.compositor.latent_space
        if folder is None:
            return own
        key = LatentSpace, folder, self.dtype
        load = partial(LatentSpace.from_pretrained, folder, self.dtype)
        space = load_once(self.others, key, lambda: load().eval().to(self.device))
        if (found := (space.channels, space.factor)) != (needed := (own.channels, own.factor)):
            text = "{} channels, {} pixels per latent".format
            raise ValueError(f"{folder}: an autoencoder of {text(*found)}; the model's has {text(*needed)}")
        return space

    @property
    def depth(self) -> DepthEstimator:
        """The depth network; without a wish for another precision that of its folder, or the single one."""
        dtype = pick_dtype(self.asked_dtype, self.device, self.depth_folder, "fp32")
        return self.once(self.depth_folder, DepthEstimator.load, self.folder, dtype=dtype)


def load_once(loaded: dict[Any, Any], key: Any, load: Callable[[], Any]) -> Any:
    """What `load` gives, or gave before under the same key."""
    if key not in loaded:
        loaded[key] = load()
    return loaded[key]


def load_eraser(source: str, device: torch.device, loaded: dict[Any, Any]) -> Eraser:
    """What fills holes, by its setting; loaded once for all who share `loaded`."""
    return load_once(loaded, (Eraser, source, device), partial(Eraser.load, source, device=str(device)))


def quantised(wrapper: Any) -> bool:
    return bool(getattr(network_of(wrapper), "is_quantized", False))


def network_of(wrapper: Any) -> torch.nn.Module:
    """The network of a locator, a detector or a depth estimator."""
    return getattr(wrapper, "mllm", wrapper).model


def compositor_folder(chosen: Path | None = None) -> Path:
    """The compositor to use: the chosen one, else the full-size one where it is complete."""
    full = resolve_model_path(FULL_MODEL)
    return chosen or (located(TINY_MODEL) if missing_parts(full) else full)


def load_models(settings: ComposeSettings, known: Models | None = None) -> Models:
    """Check scheduler, device and folder, log the notice once; weights are read when first needed.

    known: models of other settings, which are returned where these settings need the same
    """
    if settings.scheduler is not None:
        scheduler_class(settings.scheduler)
    folder, depth = compositor_folder(settings.model), depth_folder(settings.depth_model)
    own = settings.device, settings.dtype, settings.offload, settings.load_in
    inside = settings.engine, settings.channels_last
    requested = (folder, depth, *own, *inside)
    if known is not None and known.requested == requested:
        return known
    device, config = pick_device(settings.device), load_compositor_config(folder)
    if config.notice:
        logging.getLogger(__name__).info("%s", config.notice)
    dtype = pick_dtype(settings.dtype, device)
    if settings.engine == OPENVINO:
        check_openvino(device, dtype)
    if settings.engine == COMPILE:
        check_compile(device)
    for place in filter(None, (settings.vae, settings.preview_vae)):
        if not (place / "config.json").is_file():
            raise ValueError(f"{place} is no folder of an autoencoder: it has no config.json")
    return Models(
        folder, depth, config, device, dtype, settings.offload, settings.dtype, settings.load_in, requested,
        *inside)  # fmt: skip


@dataclass
class JobNetworks:
    """Of all layers of a job, or of all requests to a device: each is loaded once."""

    device: str = ""
    models: Models | None = None
    loaded: dict[Any, Any] = field(default_factory=dict)  # inpainters, writers, erasers, foreign painters
    keeps: int = 0  # bytes of tokens and control residuals that composites leave to other seeds of a place
    remembers: int = 0  # bytes of files that were read, and of what was computed of them

    def of(self, settings: ComposeSettings) -> Models:
        if (models := load_models(settings, self.models)) is not self.models:
            self.models = models
            models.others, models.recent = self.loaded, Recent(self.remembers)
            models.residuals = Recent(self.keeps)
        return models

    def once(self, load: Callable[[Any], Any], settings: Any, names: Sequence[str]) -> Any:
        """load(settings), or what it gave for settings with the same values of these names."""
        key = (load, *(getattr(settings, name) for name in names))
        return load_once(self.loaded, key, partial(load, settings))

    def eraser(self, source: str, device: str) -> Eraser:
        return load_eraser(source, pick_device(device), self.loaded)
