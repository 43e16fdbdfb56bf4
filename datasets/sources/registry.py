"""Sources by name, and the settings file that says where their data are (configs/datasets.yaml).

config = load_config(DatasetsConfig, Path("configs/datasets.yaml"))
source = open_source(config, "mose")
sources, weights = open_mixture(config)     # for datasets.base.PairDataset
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from datasets.base import Source
from datasets.inputs import Inputs
from datasets.sources.annotations import section
from datasets.sources.dreambooth import DreamBooth, DreamBoothConfig
from datasets.sources.folder import FolderConfig, OwnFolder
from datasets.sources.readers import Rules, View
from datasets.sources.rendered import RenderedScenes
from datasets.sources.saliency import Saliency, SaliencyConfig
from datasets.sources.still import CocoPanoptic, Lvis, LvisConfig, PanopticConfig, Sam, SamConfig
from datasets.sources.tryon import (
    DressCode,
    DressCodeConfig,
    FashionTryon,
    FashionTryonConfig,
    VitonHd,
    VitonHdConfig,
)
from datasets.sources.turntable import MvImgNet, MvImgNetConfig
from datasets.sources.video import (
    IdVideos,
    MoseConfig,
    Uvo,
    UvoConfig,
    UvoValConfig,
    VipSegConfig,
    Youtube,
    YoutubeConfig,
)
from ldm.files import read_json
from ldm.settings.config import check_settings, nearest, setting


class RealSource(Source, Protocol):
    """A source of images in files."""

    rules: Rules

    def name(self, index: int) -> str:
        """What the item is called; unique in the source and the same on every machine."""
        ...

    def views(self, index: int) -> Iterator[View]:
        """Every view that an example of the item may read."""
        ...


@dataclass(frozen=True)
class ScenesConfig:
    """Rendered scenes."""

    folder: Path = setting(help="folder of shards (python -m datasets.scenes render)")
    augment: bool = setting(True, help="mirror and permute the colours of whole examples")


@dataclass(frozen=True)
class DatasetsConfig:
    """Where every source is, and how often it is drawn."""

    weights: dict[str, float] = setting({}, low=0, help="share of each source in training")
    indexes: dict[str, str] = setting({}, help="lists of sound items (run_dataset_debug.py --validate)")
    youtube_vos: YoutubeConfig | None = setting(None, help="YouTube-VOS")
    youtube_vis: YoutubeConfig | None = setting(None, help="YouTube-VIS in the layout of YouTube-VOS")
    vipseg: VipSegConfig | None = setting(None, help="VIPSeg")
    mose: MoseConfig | None = setting(None, help="MOSE")
    uvo: UvoConfig | None = setting(None, help="UVO, sparse training part")
    uvo_val: UvoValConfig | None = setting(None, help="UVO, dense validation part")
    mvimgnet: MvImgNetConfig | None = setting(None, help="MVImgNet")
    viton_hd: VitonHdConfig | None = setting(None, help="VITON-HD")
    dress_code: DressCodeConfig | None = setting(None, help="DressCode")
    fashion_tryon: FashionTryonConfig | None = setting(None, help="FashionTryon")
    lvis: LvisConfig | None = setting(None, help="LVIS, or COCO instances")
    coco_panoptic: PanopticConfig | None = setting(None, help="COCO panoptic")
    sam: SamConfig | None = setting(None, help="SA-1B")
    saliency: SaliencyConfig | None = setting(None, help="MSRA10K, DUTS, HFlickr")
    dreambooth: DreamBoothConfig | None = setting(None, help="DreamBooth test set")
    folder: FolderConfig | None = setting(None, help="your own images")
    scenes: ScenesConfig | None = setting(None, help="rendered scenes")

    def __post_init__(self) -> None:
        check_settings(self)
        for key in ("weights", "indexes"):
            for name in getattr(self, key):
                if name not in SOURCES:
                    raise ValueError(f"{key}: {nearest(name, SOURCES, 'source')}")


SOURCES: dict[str, Callable[[Any], Source]] = {
    "youtube_vos": Youtube,
    "youtube_vis": Youtube,
    "vipseg": IdVideos,
    "mose": IdVideos,
    "uvo": Uvo,
    "uvo_val": Uvo,
    "mvimgnet": MvImgNet,
    "viton_hd": VitonHd,
    "dress_code": DressCode,
    "fashion_tryon": FashionTryon,
    "lvis": Lvis,
    "coco_panoptic": CocoPanoptic,
    "sam": Sam,
    "saliency": Saliency,
    "dreambooth": DreamBooth,
    "folder": OwnFolder,
    "scenes": lambda config: RenderedScenes(config.folder, augment=config.augment),
}


class Indexed:
    """The items of a source that an index lists."""

    def __init__(self, source: RealSource, index: Path) -> None:
        self.source, self.rules, self.dynamics = source, source.rules, source.dynamics
        known = {source.name(item): item for item in range(len(source))}
        listed = section(read_json(index), "items", index)
        unknown = [name for name in listed if name not in known]
        if unknown or not listed:
            what = (
                f"{len(unknown)} items that the source lacks, such as {unknown[0]}" if unknown else "no items"
            )
            raise ValueError(
                f"index {index} lists {what}; make it again with run_dataset_debug.py --validate"
            )
        self.items = [known[name] for name in listed]

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return self.source.name(self.items[index])

    def views(self, index: int) -> Iterator[View]:
        return self.source.views(self.items[index])

    def example(self, index: int, rng: np.random.Generator) -> Inputs:
        return self.source.example(self.items[index], rng)


def open_source(config: DatasetsConfig, name: str) -> Source:
    """The source of a name; a ValueError starts with that name."""
    if name not in SOURCES:
        raise ValueError(nearest(name, SOURCES, "source"))
    settings = getattr(config, name)
    if settings is None:
        set_ones = [one.name for one in fields(config) if one.name in SOURCES and getattr(config, one.name)]
        raise ValueError(
            f"{name}: the settings file has no section {name}; it has {', '.join(set_ones) or 'none'}"
        )
    try:
        source = SOURCES[name](settings)
        return Indexed(source, Path(config.indexes[name])) if name in config.indexes else source  # type: ignore
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{name}: an annotation file has another form than docs/datasets.md says: {error}"
        ) from error


def drawn_sources(config: DatasetsConfig) -> list[str]:
    """Names of the sources with a weight above 0."""
    return [name for name, weight in config.weights.items() if weight > 0]


def open_mixture(config: DatasetsConfig) -> tuple[list[Source], list[float]]:
    """Every source with a weight above 0, and the weights."""
    names = drawn_sources(config)
    if not names:
        raise ValueError(f"weights names no source; allowed: {', '.join(SOURCES)}")
    return [open_source(config, name) for name in names], [config.weights[name] for name in names]
