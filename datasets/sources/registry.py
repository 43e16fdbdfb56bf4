"""Sources by name, and the settings file that says where their data are (configs/datasets.yaml)."""

from dataclasses import dataclass, fields
from pathlib import Path

from datasets.base import ExampleSource
from datasets.sources import video
from datasets.sources.objects import DreamBoothConfig, DressCodeConfig, FashionTryonConfig, VitonHdConfig
from datasets.sources.still import FolderConfig, LvisConfig, PanopticConfig, SaliencyConfig, SamConfig
from datasets.sources.tarred import RECORD, TarConfig
from ldm.files import named_failure, read_json
from ldm.settings.config import check_settings, nearest, setting

MAPS = ("weights", "indexes", "tars")  # settings by the name of a source


@dataclass(frozen=True)
class RenderedConfig:
    folder: Path = setting(help="folder of shards (python -m datasets.scenes render)")
    augment: bool = setting(True, help="mirror and permute the colours of whole examples")

    def open(self, index: Path | None = None) -> ExampleSource:
        if index is not None:
            raise ValueError(f"rendered scenes have no index, got {index}")
        from datasets.sources.rendered import RenderedScenes

        return RenderedScenes(self.folder, augment=self.augment)


@dataclass(frozen=True)
class DatasetsConfig:
    weights: dict[str, float] = setting({}, low=0, help="fraction of each source in training, in any unit")
    indexes: dict[str, str] = setting({}, help="lists of sound items (run_dataset_debug.py --validate)")
    tars: dict[str, str] = setting({}, help="folders of tar shards to read instead (python -m datasets.tars)")
    youtube_vos: video.YoutubeConfig | None = setting(None, help="YouTube-VOS")
    youtube_vis: video.YoutubeConfig | None = setting(None, help="YouTube-VIS in the layout of YouTube-VOS")
    vipseg: video.VipSegConfig | None = setting(None, help="VIPSeg")
    mose: video.MoseConfig | None = setting(None, help="MOSE")
    uvo: video.UvoConfig | None = setting(None, help="UVO, sparse training part")
    uvo_val: video.UvoValConfig | None = setting(None, help="UVO, dense validation part")
    mvimgnet: video.MvImgNetConfig | None = setting(None, help="MVImgNet")
    viton_hd: VitonHdConfig | None = setting(None, help="VITON-HD")
    dress_code: DressCodeConfig | None = setting(None, help="DressCode")
    fashion_tryon: FashionTryonConfig | None = setting(None, help="FashionTryon")
    lvis: LvisConfig | None = setting(None, help="LVIS, or COCO instances")
    coco_panoptic: PanopticConfig | None = setting(None, help="COCO panoptic")
    sam: SamConfig | None = setting(None, help="SA-1B")
    saliency: SaliencyConfig | None = setting(None, help="MSRA10K, DUTS, HFlickr")
    dreambooth: DreamBoothConfig | None = setting(None, help="DreamBooth test set")
    folder: FolderConfig | None = setting(None, help="your own images")
    scenes: RenderedConfig | None = setting(None, help="rendered scenes")

    def __post_init__(self) -> None:
        check_settings(self)
        for key in MAPS:
            for name in getattr(self, key):
                if name not in SOURCES:
                    raise ValueError(f"{key}: {nearest(name, SOURCES, 'source')}")

    def open_mixture(self) -> tuple[list[ExampleSource], list[float]]:
        names = drawn_sources(self)
        if not names:
            raise ValueError(f"weights names no source; allowed: {', '.join(SOURCES)}")
        return [open_source(self, name) for name in names], [self.weights[name] for name in names]


# The sections; each opens its source.
SOURCES = tuple(field.name for field in fields(DatasetsConfig) if field.name not in MAPS)


def open_source(config: DatasetsConfig, name: str) -> ExampleSource:
    """The source of a name; a ValueError starts with that name."""
    if name not in SOURCES:
        raise ValueError(nearest(name, SOURCES, "source"))
    section, tars, index = getattr(config, name), config.tars.get(name), config.indexes.get(name)
    if section is None:
        present = ", ".join(key for key in SOURCES if getattr(config, key)) or "none"
        raise ValueError(f"{name}: the settings file has no section {name}; it has {present}")
    wrong = "an annotation file is not as docs/datasets.md says"
    with named_failure(name, ValueError), named_failure(wrong, KeyError, TypeError):
        if tars is not None and index is not None:
            raise ValueError("an index counts when tar shards are written, not when they are read")
        if not tars:
            return section.open(index and Path(index))
        if not (record := Path(tars) / RECORD).is_file():
            raise ValueError(f"{tars} holds no shards; `python -m datasets.tars --source {name}` makes them")
        if (source := read_json(record)["source"]) != name:
            raise ValueError(f"{tars} holds the source {source}")
        return TarConfig(folder=Path(tars), dynamics=section.dynamics, rules=section.rules).open()


def drawn_sources(config: DatasetsConfig) -> list[str]:
    return [name for name, weight in config.weights.items() if weight > 0]
