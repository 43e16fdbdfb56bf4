"""Train the prompt writer on paintings, or test one (paper sections 3.1 and 4.2, docs/prompts.md)."""

from inpainting.config_path import config_app
from inpainting.models.image_to_text.settings import PromptTraining
from ldm.settings.cli import run_module

WORK = "inpainting.models.image_to_text.training:train_prompt_writer"
HELP = "Train the prompt writer, or test it with only_val=true; the same command again continues."
build_app = config_app("Train or test the prompt writer.", "train", PromptTraining, WORK, HELP)

if __name__ == "__main__":
    run_module(build_app)
