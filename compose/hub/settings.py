"""What a folder for the hub is made of."""

from dataclasses import dataclass
from pathlib import Path

from ldm.settings.config import CheckedSettings, setting


def check_repo(repo: str) -> None:
    if repo and (repo.count("/") != 1 or not all(repo.split("/"))):
        raise ValueError(f"repo must be OWNER/NAME, got {repo!r}")


@dataclass(frozen=True)
class HubSettings(CheckedSettings):
    source: Path = setting(help="model folder")
    out: Path = setting(help="folder that is written, for the hub")
    repo: str = setting("", help="its name on the hub, OWNER/NAME; the scores are stated under OWNER")
    license: str = setting(
        "", help="licence of the weights, as the hub names it; known of those trained here"
    )
    base_model: str = setting("", help="model on the hub that the weights come from")
    relation: str = setting(
        "finetune", choices=("finetune", "adapter", "merge", "quantized"), help="how they come from it"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_repo(self.repo)


@dataclass(frozen=True)
class CompositorHub(HubSettings):
    depth_model: Path | None = setting(None, help="depth network to put in; without it the usual one")


@dataclass(frozen=True)
class InpainterHub(HubSettings):
    lora: Path | None = setting(None, help="LoRA to merge; without it the one that the folder names")


@dataclass(frozen=True)
class BenchmarkHub(CheckedSettings):
    out: Path = setting(help="data-set folder that is written, for the hub")
    manifest: Path | None = setting(
        None, help="manifest of the composite benchmark; without it the held-out scenes of the models' scores"
    )
    repo: str = setting("", help="its name on the hub, OWNER/NAME")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_repo(self.repo)
