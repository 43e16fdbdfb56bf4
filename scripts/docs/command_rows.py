"""Every command of docs/commands.md, in the order of that page."""

from __future__ import annotations

from dataclasses import dataclass

from scripts.docs.painting_commands import PAINTING_COMMANDS


@dataclass(frozen=True)
class Command:
    """One command of the page. schema and function are "module:name", one of them is given."""

    line: str  # how it is typed
    schema: str = ""  # settings dataclass
    keys: bool = False  # settings are typed as key=value after a YAML file, not as --options
    function: str = ""  # the command itself, where it is written as a function
    note: str = ""


TRAINER = "Settings are keys of the YAML file; `key=value` after it overrides them."
FLAGS = "Defaults come from `{0}`; `--config FILE` reads another YAML file, flags override both."
COMMANDS = (
    Command(
        "python run_inference.py image --background FILE --object FILE --box x1,y1,x2,y2 --out FILE",
        "run_inference:ImageSettings",
        note="Put an object into a background at a box and a depth, or where `--instruction` wants it. "
        + FLAGS.format("configs/inference.yaml"),
    ),
    Command("python run_inference.py replay IMAGE", function="run_inference:replay"),
    Command("python run_inference.py batch JOBS", function="run_inference:batch"),
    Command(
        "python run_inference.py dreambooth --objects FOLDER --backgrounds FOLDER --out FOLDER",
        "run_inference:DreamBoothSettings",
        note="Compose every object of the DreamBooth test set into every prepared background.",
    ),
    Command(
        "python run_train_bifrost.py CONFIG.yaml [key=value ...]",
        "run_train_bifrost:RunConfig",
        keys=True,
        note="Train the compositor; the same command again continues an interrupted run. " + TRAINER,
    ),
    Command(
        "python -m tiny.compositor.autoencoder CONFIG.yaml [key=value ...]",
        "tiny.compositor.autoencoder:FirstStageConfig",
        keys=True,
        note="Train the small autoencoder and compare it with a linear map of the same size. " + TRAINER,
    ),
    Command(
        "python -m tiny.depth.train CONFIG.yaml [key=value ...]",
        "tiny.depth.train:TrainDepthConfig",
        keys=True,
        note="Train the small depth network on rendered scenes. " + TRAINER,
    ),
    Command(
        "python -m cldm.evaluate --model FOLDER --out FILE",
        "cldm.evaluate.run:EvaluateSettings",
        note="Measure a compositor on held-out scenes, through the path that inference takes.",
    ),
    Command(
        "python -m tiny.bundle compositor --run FOLDER",
        function="tiny.bundle:compositor",
    ),
    Command("python -m tiny.bundle depth --run FOLDER", function="tiny.bundle:depth"),
    Command(
        "python -m tiny.bundle locator --run FOLDER",
        function="tiny.bundle:locator",
    ),
    Command(
        "python -m tiny.bundle inpainter --run FOLDER",
        function="tiny.bundle:inpainter",
    ),
    Command(
        "python -m tiny.bundle prompter --run FOLDER",
        function="tiny.bundle:prompter",
    ),
    Command(
        "python -m tiny.inpainter.train CONFIG.yaml [key=value ...]",
        "tiny.inpainter.train:TrainConfig",
        keys=True,
        note="Train the small inpainter stage by stage; run again to continue. " + TRAINER,
    ),
    Command(
        "python -m tiny.inpainter.evaluate --run FOLDER",
        "tiny.inpainter.evaluate:EvaluateConfig",
        note="Does each mask show what its own prompt names? Four models on held-out scenes.",
    ),
    Command(
        "python -m tiny.prompter.scenes --out FOLDER --count N",
        "tiny.prompter.scenes:SetScenes",
        note="Render scenes whose solids come in sets; run again to continue.",
    ),
    Command(
        "python -m tiny.prompter.train CONFIG.yaml [key=value ...]",
        "tiny.prompter.train:PrompterTraining",
        keys=True,
        note="Train the small prompt writer stage by stage; run again to continue. " + TRAINER,
    ),
    Command(
        "python -m tiny.prompter.evaluate --model FOLDER",
        "tiny.prompter.evaluate:EvaluatePrompter",
        note="How often does the small prompt writer name what a mask hides, beside what is possible at all?",
    ),
    Command(
        "python -m tiny.locator.train CONFIG.yaml [key=value ...]",
        "tiny.locator.train:LocatorTraining",
        keys=True,
        note="Train the small locator stage by stage; run again to continue. " + TRAINER,
    ),
    Command(
        "python -m llava_bifrost.train CONFIG.yaml [key=value ...]",
        "llava_bifrost.train:TrainConfig",
        keys=True,
        note="Train a locator from any model that sees; the same command again continues. " + TRAINER,
    ),
    Command(
        'python -m llava_bifrost.predict image --image FILE --instruction "Place the X behind the Y"',
        "llava_bifrost.predict.settings:ImageSettings",
        note="Ask a locator for places in one image.",
    ),
    Command(
        "python -m llava_bifrost.predict jsonl --jobs FILE",
        "llava_bifrost.predict.settings:JobSettings",
        note="Ask a locator many questions; answers are appended, run again to continue.",
    ),
    Command(
        "python -m llava_bifrost.model convert --adapter FOLDER --base FOLDER --out FOLDER",
        "llava_bifrost.model:ConvertSettings",
        note="The released Bifrost MLLM, original LLaVA layout -> a locator folder.",
    ),
    Command(
        "python -m llava_bifrost.model merge --adapter FOLDER --base FOLDER --out FOLDER",
        "llava_bifrost.model:MergeSettings",
        note="An adapter that was trained here -> a locator folder.",
    ),
    Command(
        "python -m llava_bifrost.evaluate --model FOLDER --out FILE",
        "llava_bifrost.evaluate.run:LocatorEvaluation",
        note="Does a locator's answer satisfy the sentence, in this image? Beside controls.",
    ),
    Command(
        "python -m datasets.scenes render --out FOLDER --count N",
        "datasets.scenes.store:StoreSettings",
        note="Render scenes into shards; run again to continue.",
    ),
    Command(
        "python -m datasets.scenes sheet --out FILE",
        "datasets.scenes.sheet:SheetSettings",
        note="Write a labelled contact sheet of evaluation scenes.",
    ),
    Command(
        "python -m llava_bifrost.build_dataset coco --images FOLDER --annotations FILE --out FOLDER",
        "llava_bifrost.build_dataset.coco:CocoBuild",
        note="Training data of the locator from photographs: one object of each is removed. Run again to "
        "continue; `configs/llava_bifrost/build_coco.yaml` is the full recipe, `build_published.yaml` holds "
        "the published rules.",
    ),
    Command(
        "python -m llava_bifrost.build_dataset scenes --scenes FOLDER --out FOLDER",
        "llava_bifrost.build_dataset.scenes:ScenesBuild",
        note="Training data of the locator from rendered scenes, exact. Run again to continue.",
    ),
    Command(
        "python -m llava_bifrost.build_dataset merge --out FOLDER",
        "llava_bifrost.build_dataset.__main__:MergeSettings",
        note="Put the shards of several machines together.",
    ),
    *(
        Command(f"python -m inpainting.data.{line}", f"inpainting.data.{schema}", note=note)
        for line, schema, note in PAINTING_COMMANDS
    ),
    Command(
        "python -m inpainting.paint --image FILE --masks FILE FILE --prompts TEXT TEXT --out FILE",
        "inpainting.paint:PaintSettings",
        note="Fill masks of an image, each with its own prompt; `--config FILE` reads defaults, flags win.",
    ),
    Command(
        "python -m inpainting.dream --image FILE --masks FILE FILE --out FILE",
        "inpainting.dream:DreamSettings",
        note="Write a prompt for each mask that has none, then fill the masks.",
    ),
    Command(
        "accelerate launch -m inpainting.models.image_to_text.fine_tune_llavanext train "
        "--config-path=CONFIG.yaml [key=value ...]",
        "inpainting.models.image_to_text.settings:PromptTraining",
        keys=True,
        note="Train the prompt writer, or with `only_val: true` test it; the same command again continues. "
        + TRAINER,
    ),
    Command(
        "accelerate launch -m inpainting.models.text_to_image.train_text_to_image_lora main "
        "--config-path=CONFIG.yaml [key=value ...]",
        "inpainting.models.text_to_image.train_text_to_image_lora:TrainLoraConfig",
        keys=True,
        note="Train a LoRA of the inpainter; the same command again continues. " + TRAINER,
    ),
    Command(
        "python -m inpainting.models.text_to_image.test generate --config-path CONFIG.yaml [key=value ...]",
        "inpainting.models.text_to_image.evaluation.settings:PaintingsConfig",
        keys=True,
        note="Fill the masked regions of the test paintings; run again to continue, `--shard i/n` divides "
        "the work. `generate-prompts`, `generate-repeated` and `compute` take the same settings. " + TRAINER,
    ),
    Command(
        "python -m inpainting.models.text_to_image.test compute --config-path CONFIG.yaml [key=value ...]",
        function="inpainting.models.text_to_image.test:compute_verb",
    ),
    Command(
        "python -m inpainting.models.image_to_text.score PREDICTIONS --out FILE",
        function="inpainting.models.image_to_text.score:score",
    ),
    Command("python run_dataset_debug.py --source NAME --out FILE", function="run_dataset_debug:debug"),
    Command(
        "python -m ldm.precompute_depth IMAGE_TREE OUT_TREE",
        "ldm.precompute_depth:DepthSettings",
        note="Estimate the depth of every image of a tree; the same command again continues.",
    ),
    Command("python -m datasets.uvo_process VIDEO_JSON OUT_JSON", function="datasets.uvo_process:process"),
    Command("python -m compose.contact_sheet [IMAGES] --out FILE", function="compose.contact_sheet:make"),
    *(
        Command(
            f"python -m cldm.convert {verb} --source FILE --out FOLDER",
            "cldm.convert.convert:CompositorSettings",
            note=note,
        )
        for verb, note in (
            ("anydoor", "AnyDoor weights -> a compositor folder that works at once."),
            ("bifrost", "Released Bifrost weights -> a compositor folder."),
            ("sd21", "Stable Diffusion 2.1 base -> the folder that training starts from."),
        )
    ),
    Command(
        "python -m cldm.convert dinov2 --source FILE --out FOLDER",
        "cldm.convert.convert:ConvertSettings",
        note="DINOv2 ViT-g/14, original file -> a transformers folder.",
    ),
    Command(
        "python -m cldm.convert dpt --source FILE --out FOLDER",
        "cldm.convert.convert:ConvertSettings",
        note="DPT-Large, original file -> a transformers folder.",
    ),
    Command(
        "python -m cldm.convert export --source FOLDER --out FILE",
        "cldm.convert.export:ExportSettings",
        note="A folder -> the original single-file layout.",
    ),
    Command("python -m ldm.registry list", function="ldm.registry.__main__:list_models"),
    *(
        Command(f"python -m ldm.registry {verb} NAME{rest}", function=f"ldm.registry.__main__:{verb}")
        for verb, rest in (("show", ""), ("where", ""), ("pull", ""), ("register", " FILE"), ("verify", ""))
    ),
    Command("python -m ldm.doctor", function="ldm.doctor:report"),
    Command(
        "python -m compose.benchmark build --instances FILE --images FOLDER --objects FOLDER --out FILE",
        function="compose.benchmark.__main__:build",
    ),
    Command(
        "python -m compose.benchmark verify MANIFEST --images FOLDER --objects FOLDER",
        function="compose.benchmark.__main__:check",
    ),
    Command(
        "python -m compose.benchmark jobs MANIFEST --instances FILE --images FOLDER "
        "--objects FOLDER --out FILE",
        function="compose.benchmark.__main__:jobs",
    ),
    Command(
        "python -m compose.benchmark score --results FOLDER --manifest FILE --images FOLDER --objects FOLDER",
        "compose.benchmark.score:ScoreSettings",
        note="Score a folder of composites, ours or those of any other system, against the manifest.",
    ),
    Command("python -m scripts.docs.make_teaser", function="scripts.docs.make_teaser:make"),
    Command("python -m scripts.docs.make_examples", function="scripts.docs.make_examples:make"),
    Command("python -m scripts.docs.draw_figure", function="scripts.docs.draw_figure:make"),
    Command("python -m scripts.docs.draw_locator", function="scripts.docs.draw_locator:make"),
    Command("python -m scripts.docs.draw_regions", function="scripts.docs.draw_regions:make"),
    Command("python -m scripts.docs.make_command_docs", function="scripts.docs.make_command_docs:make"),
)
