"""ComfyUI nodes for a Bifrost server; copy or link this folder into `custom_nodes`."""

from comfy_api.latest import ComfyExtension

from .nodes import Compose, PaintRegions, PlaceBySentence


class BifrostNodes(ComfyExtension):
    async def get_node_list(self) -> list:
        return [PlaceBySentence, Compose, PaintRegions]


async def comfy_entrypoint() -> ComfyExtension:
    return BifrostNodes()
