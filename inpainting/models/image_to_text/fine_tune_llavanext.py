"""Train the prompt writer on paintings, or test one (paper sections 3.1 and 4.2, docs/prompts.md)."""

from inpainting.config_path import config_verb
from inpainting.models.image_to_text.settings import PromptTraining
from ldm.settings.cli import App, new_app, run_module, takes_keys
from ldm.settings.later import later


def build_app() -> App:
    app = new_app("Train or test the prompt writer.")
    help = "Train the prompt writer, or test it with only_val=true; the same command again continues."
    work = later("inpainting.models.image_to_text.training:train_prompt_writer")
    app.command("train", cls=takes_keys(PromptTraining))(config_verb(PromptTraining, work, help))
    return app


if __name__ == "__main__":
    run_module(build_app)
