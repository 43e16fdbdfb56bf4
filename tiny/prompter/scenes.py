"""Scenes whose solids come in sets, as ordinary shards: what a mask hides depends on what is visible.

    python -m tiny.prompter.scenes --out data/scenes/prompter_train --count 8192
    python -m tiny.prompter.scenes --out data/scenes/prompter_eval --count 1024 --split eval

The left and the right half of a scene each have a colour, and the scene has a shape, all drawn uniformly. A
solid has the colour of its half with probability FOLLOW, else any, and the scene's shape likewise. The words
are drawn before the geometry, and the geometry is drawn again until all of them fit, so that the distribution
holds exactly.
"""

from dataclasses import dataclass
from pathlib import Path

from datasets.scenes.settings import StoreSettings
from ldm.settings.cli import command, run_module, single_app
from ldm.settings.config import setting


@dataclass(frozen=True)
class SetScenes(StoreSettings):
    out: Path = setting(Path("data/scenes/prompter_train"), help="folder of the shards")
    reference_size: tuple[int, int] = setting((16, 16), low=16, high=4096,
        help="height,width of the reference view, equal")  # fmt: skip
    objects: tuple[int, int] = setting((4, 7), help="least,most solids, tables not counted", low=2, high=8)
    furniture: float = setting(0.3, help="fraction of scenes with a table or a low platform", low=0, high=1)
    reference_pose: str = setting("same", help="prompts need no reference", choices=("same",))
    occluded: float = setting(0.0, help="every solid shows at least half of itself", low=0, high=0)
    world: str = setting("plain", help="the world whose words the prompts are made of", choices=("plain",))


build_app = single_app(command(SetScenes, "tiny.prompter.sets:render_sets"), bare=False)

if __name__ == "__main__":
    run_module(build_app)
