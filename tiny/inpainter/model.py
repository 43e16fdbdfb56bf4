"""The networks of the small inpainter, created from sizes, in Stable Diffusion's inpainting layout.

UNet with 9 input channels (4 latent, 1 mask, 4 latents of the masked image), CLIP text encoder and tokenizer,
scheduler with v-prediction and zero terminal SNR (Lin et al. 2024), and a first stage of its own:
AutoencoderTiny, f4, 4 latent channels. Stable Diffusion's pipelines know one scaling factor for all channels,
so the latents are held near zero mean and equal deviation while the autoencoder learns. For the evaluation
only: a classifier of crops, which colour and which shape stands here?
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from cldm.config import AutoencoderConfig
from cldm.create import create_autoencoder
from datasets.geometry import Box
from inpainting.models.text_to_image.config import InpainterConfig, Recommended
from inpainting.models.text_to_image.load import INPAINTER_FILE
from ldm.checkpoints import drawing, folder_written_whole, load_strict, loading, save_part
from ldm.files import write_atomic, write_json
from ldm.settings.config import write_config
from tiny.compositor.training import pm1_batch
from tiny.inpainter.examples import make_example
from tiny.loop import Stage, autocast
from tiny.settings import ClassifierConfig, InpainterNetworks, LatentsConfig
from tiny.world import COLOUR_WORDS, LENGTH, SHAPE_WORDS, Views, grown, make_tokenizer

WEIGHTS = "judge.safetensors"  # the name that runs and the bundle have on disk
SIDE = 32  # of the crops that the classifier sees, pixels
LATENT_CHANNELS = 4
STATISTICS_WEIGHT = 0.05  # of the penalty that holds the statistics of the latents; chosen
NOTICE = "small inpainter: it knows rendered solids and their words only; photographs need the full model"


class PainterNetworks(nn.Module):
    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def save_folder(self, tokenizer: CLIPTokenizer, vae: AutoencoderTiny, folder: Path, dtype: Any) -> None:
        """A folder that `StableDiffusionInpaintPipeline.from_pretrained` loads, and our own loader."""
        for name, part in (("unet", self.unet), ("text_encoder", self.text_encoder), ("vae", vae)):
            save_part(part, folder / name, dtype)
        tokenizer.save_pretrained(folder / "tokenizer")
        tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))  # vocab.json and merges.txt
        create_scheduler().save_pretrained(folder / "scheduler")
        index: dict[str, Any] = {
            "_class_name": "StableDiffusionInpaintPipeline", "_diffusers_version": "0.42.1",
            "feature_extractor": [None, None], "image_encoder": [None, None],
            "requires_safety_checker": False, "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderTiny"],
        }  # fmt: skip
        best = Recommended(steps=8, guidance=2.0)
        config = InpainterConfig("small inpainter", notice=NOTICE, sampling=best)
        write_config(folder / INPAINTER_FILE, config)
        write_json(folder / "model_index.json", index)


def create_scheduler() -> DDIMScheduler:
    """Cosine schedule with zero terminal SNR, trailing steps, v-prediction.

    Stable Diffusion's own schedule spends half of its steps where a region of a few cells is all noise.
    """
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", rescale_betas_zero_snr=True,
        timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True, steps_offset=1)  # fmt: skip


def create(config: InpainterNetworks, seed: int) -> tuple[PainterNetworks, CLIPTokenizer]:
    """Fresh networks and the tokenizer of the world's words. Eager attention: faster to train on a CPU."""
    tokenizer = make_tokenizer()
    with drawing(seed):
        unet = UNet2DConditionModel(
            sample_size=config.latent_size, in_channels=2 * LATENT_CHANNELS + 1, out_channels=LATENT_CHANNELS,
            down_block_types=[("CrossAttn" if on else "") + "DownBlock2D" for on in config.attention],
            up_block_types=[("CrossAttn" if on else "") + "UpBlock2D" for on in reversed(config.attention)],
            block_out_channels=config.block_channels, layers_per_block=1,
            cross_attention_dim=config.text_width,
            attention_head_dim=config.heads,  # diffusers reads this as the number of heads
            norm_num_groups=config.norm_groups, use_linear_projection=True)  # fmt: skip
        unet.set_attn_processor(AttnProcessor())
        words = CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=config.text_width, intermediate_size=3 * config.text_width,
            projection_dim=config.text_width, num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads, max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, attn_implementation="eager")  # fmt: skip
        text_encoder = CLIPTextModel(words)
        # Embeddings start far apart: with the library's deviation of 0.02 the words are told apart only late.
        nn.init.normal_(text_encoder.get_input_embeddings().weight, std=0.5)
        for name, weight in text_encoder.named_parameters():
            if name.endswith("position_embedding.weight"):
                nn.init.normal_(weight, std=0.1)
    return PainterNetworks(unet, text_encoder), tokenizer


def train_autoencoder(config: LatentsConfig, images_u8: np.ndarray, out: Path) -> tuple[nn.Module, Stage]:
    """Squared error on images_u8 (n, h, w, 3), latents held near mean 0, deviation 1; saves `out/vae`."""
    sizes = AutoencoderConfig("tiny", (config.width,) * 3, config.layers, config.latent_channels)
    with drawing(config.loop.seed):
        vae = create_autoencoder(sizes).to(memory_format=torch.channels_last)

    @autocast("cpu", enabled=config.loop.bf16)
    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        """On random crops; some have a box of mid-grey, as the encoder will see images with a hole too."""
        rng = np.random.default_rng((config.loop.seed, step))
        batch = np.empty((config.loop.batch, config.crop, config.crop, 3), np.float32)
        for row, index in enumerate(rng.integers(len(images_u8), size=len(batch))):
            top, left = rng.integers(images_u8.shape[1] - config.crop + 1, size=2)
            crop = images_u8[index, top : top + config.crop, left : left + config.crop]
            batch[row] = crop[:, :: rng.choice((1, -1)), rng.permutation(3)] / 127.5 - 1
            if rng.random() < 0.3:
                y, x = rng.integers(0, config.crop, size=2)
                height, width = rng.integers(12, 48, size=2)
                batch[row, y : y + height, x : x + width] = 0
        image = torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        latents = vae.encode(image).latents
        error = nn.functional.mse_loss(vae.decode(latents).sample.float(), image)
        flat = latents.float()
        spread = (flat.mean((0, 2, 3)).square() + (flat.std((0, 2, 3)) - 1).square()).mean()
        penalty = STATISTICS_WEIGHT * spread
        return error + penalty, {"mse": error.item(), "spread": penalty.item()}

    stage = Stage("first stage", vae, config.loop, out).train(loss)
    with torch.inference_mode():
        parts = [part for part in np.array_split(images_u8[:512], 32) if len(part)]
        squares = torch.stack([vae.encode(pm1_batch(part)).latents.square().mean() for part in parts])
    vae.register_to_config(scaling_factor=round(config.scale / float(squares.mean().sqrt()), 4))
    with folder_written_whole(out / "vae") as folder:
        save_part(vae, folder)
    return vae, stage


class SolidClassifier(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        layers, before = list[nn.Module](), 3
        for after in (width, 2 * width, 4 * width):
            for inside in (before, after):
                layers += [nn.Conv2d(inside, after, 3, padding=1), nn.GroupNorm(8, after), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            before = after
        self.features = nn.Sequential(*layers)
        self.colour = nn.Linear(2 * before, len(COLOUR_WORDS))
        self.shape = nn.Linear(before * (SIDE // 8) ** 2, len(SHAPE_WORDS))

    def forward(self, crops_pm1: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 3, 32, 32) in [-1, 1] -> scores of colours (b, 15) and shapes (b, 11)."""
        features = self.features(crops_pm1)
        middle = features[:, :, 1:-1, 1:-1].mean((2, 3))
        return self.colour(torch.cat([features.amax((2, 3)), middle], 1)), self.shape(features.flatten(1))


def crop_pm1(image_u8: np.ndarray, box: Box) -> np.ndarray:
    """What the classifier sees of a mask: the box with a rim of a tenth, scaled to (3, 32, 32) in [-1, 1]."""
    rim = [max(1, round(0.1 * (box[2 + axis] - box[axis]))) for axis in (0, 1)]
    left, top, right, bottom = grown(box, (*rim, *rim), image_u8.shape)
    shown = cv2.resize(image_u8[top:bottom, left:right], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return shown.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1


def train_classifier(config: ClassifierConfig, views: Views, out: Path) -> tuple[SolidClassifier, Stage]:
    """Learn colour and shape from the solids of `views`; saves `out/judge.safetensors` in half precision."""
    with drawing(config.loop.seed):
        network = SolidClassifier(config.width)
    solids = [(scene, index) for scene, regions in enumerate(views.regions) for index in range(len(regions))]

    @autocast("cpu", enabled=config.loop.bf16)
    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((config.loop.seed, step))
        crops, colours, shapes = [], [], []
        for row in rng.integers(len(solids), size=config.loop.batch):
            scene, index = solids[row]
            region = views.regions[scene][index]
            example = make_example(views, scene, [region], rng)
            crop = crop_pm1(example.image_u8, example.boxes[0])[:, :, :: rng.choice((1, -1))]
            crops.append(crop + rng.normal(0, 0.03 * rng.random(), crop.shape))
            colours.append(COLOUR_WORDS.index(region.name.colour))
            shapes.append(SHAPE_WORDS.index(region.name.shape))
        scores = network(torch.from_numpy(np.stack(crops)).float())
        colour, shape = (
            nn.functional.cross_entropy(score.float(), torch.tensor(labels))
            for score, labels in zip(scores, (colours, shapes), strict=True)
        )
        return colour + shape, {"colour": colour.item(), "shape": shape.item()}

    stage = Stage("classifier", network, config.loop, out).train(loss)
    half = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    write_atomic(out / WEIGHTS, save(half))
    return network.eval(), stage


@loading()
def load_classifier(folder: Path) -> SolidClassifier:
    """The trained classifier of a run or of the bundle."""
    path = folder / WEIGHTS
    if not path.exists():
        raise ValueError(f"{path} is missing; train the stage judge first")
    weights = {name: value.float() for name, value in load_file(path).items()}
    network = SolidClassifier(weights["features.0.weight"].shape[0])
    load_strict(network, weights, path)
    return network.eval()
