"""The networks of one or many composites, each loaded when it is first needed."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from cldm.model import Compositor
from cldm.pretrained import CompositorConfig, load_compositor, load_compositor_config
from compose.settings import ComposeSettings, depth_folder, model_folder
from ldm.device import pick_device, pick_dtype
from ldm.experts.depth import DepthEstimator
from ldm.experts.detect import Detector
from llava_bifrost.locator import Locator, load_locator

logger = logging.getLogger(__name__)


@dataclass
class Models:
    """The networks of one or many composites; each is loaded when it is first needed."""

    folder: Path
    card: CompositorConfig
    depth_folder: Path
    device: torch.device
    dtype: torch.dtype  # of the compositor
    offload: bool = False
    asked: tuple[str, str, bool] = ("auto", "auto", False)  # device, dtype, offload as the settings say
    locators: dict[str, Locator] = field(default_factory=dict)
    detectors: dict[str, Detector] = field(default_factory=dict)

    def locator(self, folder: Path) -> Locator:
        """The language model that reads sentences."""
        if folder.as_posix() not in self.locators:
            self.locators[folder.as_posix()] = load_locator(folder, str(self.device))
        return self.locators[folder.as_posix()]

    def detector(self, folder: Path) -> Detector:
        """The network that finds named things."""
        if folder.as_posix() not in self.detectors:
            self.detectors[folder.as_posix()] = Detector.load(folder, device=str(self.device))
        return self.detectors[folder.as_posix()]

    @cached_property
    def compositor(self) -> Compositor:
        """In eval mode, on the device, or on the CPU until a stage needs it."""
        model, _ = load_compositor(self.folder, self.dtype)
        return model if self.offload else model.to(self.device)

    @cached_property
    def depth(self) -> DepthEstimator:
        """The depth network, in single precision."""
        return DepthEstimator.load(self.depth_folder, device=str(self.device))


def load_models(settings: ComposeSettings) -> Models:
    """Check device and folder, say once what the compositor is; weights are read when first needed."""
    device = pick_device(settings.device)
    folder = model_folder(settings)
    card = load_compositor_config(folder)
    if card.notice:
        logger.info("%s", card.notice)
    dtype = pick_dtype(settings.dtype, device)
    asked = (settings.device, settings.dtype, settings.offload)
    return Models(folder, card, depth_folder(settings.depth_model), device, dtype, settings.offload, asked)
