"""Commands of the renderer: python -m datasets.scenes render --out DIR --count N, or sheet."""

from datasets.scenes.settings import SheetSettings, StoreSettings
from ldm.settings.cli import App, command, new_app, run_module


def build_app() -> App:
    app = new_app("Rendered tabletop scenes with exact masks, depth and counterfactuals.")
    app.command("render")(command(StoreSettings, "datasets.scenes.store:render_shards"))
    app.command("sheet")(command(SheetSettings, "datasets.scenes.store:write_scene_sheet"))
    return app


if __name__ == "__main__":
    run_module(build_app)
