"""What the two papers' repositories tell their users to type, and what to type here.

`here` is empty where the same line works as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

CONFIGS = "models/configs/text_to_image"
LAUNCH = "accelerate launch -m inpainting.models"
PAINT = f"{LAUNCH}.text_to_image.train_text_to_image_lora main --config-path"
TEST = "python -m inpainting.models.text_to_image.test"
OPS = "python -m inpainting.data.ops"
DATA = "data/mm_inp_dataset"
PROMPTS = f"{LAUNCH}.image_to_text.fine_tune_llavanext train --config-path=models/configs/image_to_text"
TRAINED = ("sd_2_inp_finetuned", "sd_2_inp_rca_finetuned")
TESTED = ("sd_2_inp_hqprompt", "sd_2_inp", "sd_2_inp_rca", *TRAINED)


@dataclass(frozen=True)
class Published:
    """One published command."""

    line: str
    here: str = ""
    note: str = ""


BIFROST = (
    Published("sh scripts/convert_weight.sh", note="Stable Diffusion 2.1 base as a start for training"),
    Published("sh scripts/convert_weight_anydoor.sh", note="AnyDoor as a start"),
    Published(
        "sh scripts/train.sh", note="without arguments the small model; its YAML is the first argument"
    ),
    Published("python run_train_bifrost.py", "python run_train_bifrost.py configs/bifrost.yaml"),
    Published(
        "python run_inference.py",
        "python run_inference.py image --config configs/demo.yaml --compat bifrost --steps 50",
        "constants in the file there, options here",
    ),
    Published("sh scripts/inference.sh"),
    Published(
        "python run_dataset_debug.py",
        "python run_dataset_debug.py --source scenes --n 8 --out outputs/scenes.png",
    ),
    Published(
        "python create_dataset.py",
        "python -m llava_bifrost.build_dataset coco --config configs/llava_bifrost/build_published.yaml",
        "in LLaVA_Bifrost; reads private paths there",
    ),
    Published("sh train.sh", "sh scripts/train_llava.sh", "in LLaVA_Bifrost"),
    Published(
        "python llava/eval/run_llava.py",
        'python -m llava_bifrost.predict image --image IMAGE.png --instruction "SENTENCE"',
        "prompt in the file there",
    ),
    Published(
        "python llava/eval/run_llava_test.py",
        "python -m llava_bifrost.evaluate --scenes 1000 --out outputs/locator.json",
        "or --dataset FILE; the published numbers are among the results, named so",
    ),
)
_FILES = f"--annotations-path data/annotations.json --image-dir {DATA}/images"
DREAM = (
    Published(
        "python -m inpainting.data.downloader download-and-save-images-wikiart-v2 "
        "--output_dir data/mm_inp_dataset/images"
    ),
    Published(f"{OPS} make-masks-dataset {_FILES} --out-dir {DATA}/masks"),
    Published(f"{OPS} make-entities-dataset {_FILES} --out-dir {DATA}/entities"),
    Published(f"{OPS} extract-noun-chunk-roots --entities-dir {DATA}/entities"),
    Published(
        f"{OPS} caption-masks --entities-dir {DATA}/entities --model-id llava-hf/llava-v1.6-vicuna-13b-hf "
        "--batch-size 8 --max-new-tokens 40"
    ),
    Published(
        f"{OPS} llava-annotations-to-folder --annotations-path data/llava.json --out-dir {DATA}/entities"
    ),
    Published(f"{OPS} llava-annotations-to-entity-annotations --entities-dir {DATA}/entities"),
    Published(
        f"{OPS} train-val-test-split --image-dir {DATA}/images --masks-dir {DATA}/masks "
        "--split-df-path data/wikiart_images.csv"
    ),
    Published(f"{PROMPTS}/test/config_base.yaml", note="LLaVA-Prompt; the file is test/llava_prompt.yaml"),
    Published(f"{PROMPTS}/train/llava_1mask.yaml"),
    Published(f"{PROMPTS}/test/llava_1mask.yaml"),
    Published(f"{PROMPTS}/train/llava_multimask.yaml"),
    Published(f"{PROMPTS}/test/llava_multimask_1pred.yaml"),
    Published(f"{PROMPTS}/test/llava_multimask.yaml"),
    *(Published(f"{PAINT}={CONFIGS}/{name}.yaml") for name in TRAINED),
    *(Published(f"{TEST} generate --config-path {CONFIGS}/test/{name}.yaml") for name in TESTED),
    Published(f"{TEST} generate-prompts --config-path {CONFIGS}/test/{TRAINED[1]}_gen.yaml"),
    Published(f"{TEST} generate --config-path {CONFIGS}/test/{TRAINED[1]}_gen.yaml"),
    Published(f"{TEST} compute --config-path {CONFIGS}/test/{TRAINED[1]}.yaml"),
    Published(f"{TEST} compute --config-path {CONFIGS}/test/{TRAINED[1]}.yaml --only-multi-prompt"),
)


def published_section() -> str:
    """The tables of the page."""
    lines = [
        "## Commands of the two papers",
        "",
        "A path below `models/configs/` is looked up in `configs/inpainting/`.",
        "",
    ]
    for title, rows in (("Bifrost", BIFROST), ("I Dream My Painting", DREAM)):
        lines += [f"| {title} | here | |", "|---|---|---|"]
        lines += [
            f"| `{row.line}` | {f'`{row.here}`' if row.here else 'the same'} | {row.note} |" for row in rows
        ]
        lines.append("")
    return "\n".join(lines)
