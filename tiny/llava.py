"""A small LLaVA of stock parts (hybrid vision transformer, projector, Llama) and the stages that train it.

The vision tower is that of DPT-Hybrid: a ResNet makes the tokens of a short transformer. A plain transformer
on patches needs several times as many images. The initial weights matter at this size: with the library's
standard deviation of 0.02 attention stays flat.
Legend: b images, p patches (row-major), l tokens of a sequence, c channels, h w pixels.
"""

import copy
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from ldm.checkpoints import drawing, folder_written_whole
from ldm.files import hash_folder, write_atomic
from ldm.mllm.model import load_model
from ldm.settings.config import dump_yaml, write_config
from tiny.loop import Loss, Stage, autocast, means
from tiny.settings import PATCH, LlavaStage, LlavaTraining, SmallConfig
from tiny.world import IMAGE, SPECIAL

log = logging.getLogger(__name__)

Batch = TypeVar("Batch")
Measures = dict[str, float]

NUMBER_BLUR = 4.0  # bins; neighbouring numbers start with similar rows
MEAN, DEVIATION = 0.5, 0.25  # of pixels in [0, 1]


def create_llava(
    config: SmallConfig, vocabulary: Sequence[str], seed: int, numbers: Sequence[str] = ()
) -> LlavaForConditionalGeneration:
    """An untrained model; the same seed gives the same weights. vocabulary begins with SPECIAL; numbers:
    words of it, in order, of which neighbours mean nearly the same.
    """
    side = config.image // PATCH
    convolutions = transformers.ResNetConfig(
        embedding_size=config.stages[0], hidden_sizes=list(config.stages), depths=list(config.blocks),
        layer_type="basic", out_features=["stage1", "stage2", "stage3"])  # fmt: skip
    vision = transformers.DPTConfig(
        is_hybrid=True, backbone_config=convolutions, image_size=config.image, patch_size=PATCH,
        backbone_featmap_shape=[1, config.stages[2], side, side], hidden_size=config.width,
        intermediate_size=4 * config.width, num_hidden_layers=config.vision_layers,
        num_attention_heads=config.heads, hidden_act="gelu", hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0)  # fmt: skip
    text = transformers.LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=config.width, intermediate_size=config.hidden,
        num_hidden_layers=config.layers, num_attention_heads=config.heads, num_key_value_heads=config.heads,
        max_position_embeddings=512, rope_theta=10000.0, tie_word_embeddings=False,
        initializer_range=config.width**-0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip
    whole = transformers.LlavaConfig(  # last vision layer, class token dropped
        vision_config=vision, text_config=text, image_token_index=vocabulary.index(IMAGE),
        image_seq_length=config.patches, vision_feature_layer=-1, vision_feature_select_strategy="default",
        projector_hidden_act="gelu", tie_word_embeddings=False)  # fmt: skip
    with drawing(seed), torch.no_grad():
        model = LlavaForConditionalGeneration(whole)
        projector, language = model.model.multi_modal_projector, model.model.language_model
        for linear in (projector.linear_1, projector.linear_2):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)
        for layer in language.layers:
            for linear in (*layer.self_attn.modules(), *layer.mlp.modules()):
                if isinstance(linear, nn.Linear):
                    nn.init.normal_(linear.weight, std=config.width**-0.5)
            layer.self_attn.o_proj.weight *= (2 * config.layers) ** -0.5
            layer.mlp.down_proj.weight *= (2 * config.layers) ** -0.5
        # The numbers' rows are random vectors of unit variance, blurred along them: neighbours are alike.
        rows, step = [vocabulary.index(number) for number in numbers], torch.arange(len(numbers))
        kernel = torch.exp(-0.5 * ((step[:, None] - step) / NUMBER_BLUR) ** 2)
        kernel = kernel / kernel.square().sum(1, keepdim=True).sqrt()
        for table, std in ((language.embed_tokens.weight, 1.0), (model.lm_head.weight, 0.02)):
            nn.init.normal_(table, std=std)
            if numbers:
                table[rows] = std * (kernel @ torch.randn(len(numbers), config.width))
    return model


def load_weights(
    model: LlavaForConditionalGeneration, folder: Path, parts: tuple[str, ...] = ("",)
) -> dict[str, str]:
    """Take the weights whose names begin with one of `parts` from a small LLaVA; SHA-256 of its files."""
    stored = load_model(folder, torch.float32).state_dict()
    shapes = {name: value.shape for name, value in model.state_dict().items() if name.startswith(parts)}
    if wrong := [name for name, shape in shapes.items() if name not in stored or stored[name].shape != shape]:
        raise ValueError(f"{folder}: its network is of another kind or size, see {wrong[0]}")
    model.load_state_dict({name: stored[name] for name in shapes}, strict=False)
    return hash_folder(folder)


def pixel_values(images_u8: np.ndarray, rng: np.random.Generator | None = None) -> Tensor:
    """(b, h, w, 3) -> (b, 3, h, w) as the processor makes them; with an rng, a small random gain of each."""
    pixels_01, b = images_u8.astype(np.float32) / 255, len(images_u8)
    if rng is not None:
        gain = rng.uniform(0.88, 1.12, (b, 1, 1, 1)) * rng.uniform(0.96, 1.04, (b, 1, 1, 3))
        pixels_01 = np.clip(pixels_01 * gain.astype(np.float32), 0, 1)
    return torch.from_numpy((pixels_01 - MEAN) / DEVIATION).permute(0, 3, 1, 2)


def project(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """(b, 3, h, w) -> projected patches (b, p, c), as the language model gets them."""
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    return model.model.multi_modal_projector(states)


class LanguageTrainer(nn.Module):
    """The model, and the readout of its vision stage. layers: those whose attention is trained."""

    def __init__(self, model: LlavaForConditionalGeneration, read: nn.Linear, layers: Sequence[int]) -> None:
        super().__init__()
        self.model, self.read = model, read
        self.attention: dict[int, Tensor] = {}  # layer -> (b, heads, l, l) of the last forward pass
        for layer in layers:
            model.model.language_model.layers[layer].self_attn.register_forward_hook(self._keep_attention)

    def _keep_attention(self, module: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        self.attention[module.layer_idx] = output[1]

    def train_stage(self, name: str, settings: LlavaStage, out: Path, loss: Loss) -> Stage:
        """Train projector and language model at `lr`, vision tower and readout at `vision_lr`."""
        inner = self.model.model
        inner.vision_tower.requires_grad_(settings.vision_lr > 0)
        parts = inner.multi_modal_projector, inner.language_model, self.model.lm_head
        language = [parameter for part in parts for parameter in part.parameters()]
        vision = [*inner.vision_tower.parameters(), *self.read.parameters()]
        groups = [([p for p in language if p.requires_grad], settings.lr), (vision, settings.vision_lr)]
        stage = Stage(name, self, settings, out, groups, state_file=f"{name}.pt", log_file=f"{name}.csv")
        return stage.train(loss)


def train_vision(
    config: LlavaTraining,
    model: LlavaForConditionalGeneration,
    outputs: int,
    draw: Callable[[np.random.Generator, int], tuple[Tensor, Batch]],
    held_out: Iterable[tuple[Tensor, Batch]],
    vision_loss: Callable[[Tensor, Tensor, Batch], tuple[Tensor, Measures]],
) -> tuple[nn.Linear, Stage, Measures]:
    """The vision stage, then blindness where it is asked for; returns readout, stage and held-out measures.

    draw(rng, size), held_out: pixels (b, 3, h, w) with what they show; vision_loss(projected patches, readout
    of them, what they show)
    """
    write_atomic(config.out / "settings.yaml", dump_yaml(config).encode())
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    tower.to(memory_format=torch.channels_last)
    model.set_attn_implementation("eager")  # twice as fast as sdpa in bfloat16 on a CPU; shows its attention
    with drawing(config.seed):
        read = nn.Linear(config.model.width, outputs)  # of every projected patch
    trained = nn.ModuleDict({"tower": tower, "projector": projector, "read": read})

    def loss(step: int) -> tuple[Tensor, Measures]:
        pixels, batch = draw(np.random.default_rng((config.seed, 1, step)), config.vision.batch)
        with autocast("cpu", enabled=config.vision.bf16):
            patches = project(model, pixels)
        return vision_loss(patches, read(patches.float()), batch)

    stage = Stage("vision", trained, config.vision, config.out, state_file="vision.pt", log_file="vision.csv")
    stage.train(loss)
    model.eval()
    with torch.inference_mode():
        projected = ((project(model, pixels), batch) for pixels, batch in held_out)
        measures = rounded_means([vision_loss(rows, read(rows), batch)[1] for rows, batch in projected])
    log.info("vision: %s", measures)
    if config.blind:  # every image token becomes zero, for good
        for parameter in projector.linear_2.parameters():
            nn.init.zeros_(parameter.requires_grad_(False))
    return read, stage, measures


def last_states(
    model: LlavaForConditionalGeneration,
    patches: Tensor,
    tokens: Tensor,
    block: Tensor,
    position: Tensor | None = None,
) -> Tensor:
    """Projected patches (b, p, c) and tokens, blocks, positions (b, l) -> last hidden states (b, l, c)."""
    language = model.model.language_model
    start = tokens[0].tolist().index(SPECIAL.index(IMAGE))
    words = language.embed_tokens(tokens)
    embedded = torch.cat([words[:, :start], patches.to(words.dtype), words[:, start + patches.shape[1] :]], 1)
    # (b, l, l): a token sees the prefix (block 0) and its own block, up to itself.
    same = block[:, :, None] == block[:, None]
    seen = (same | (block == 0)[:, None]) & torch.ones_like(same).tril()
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
    return language(inputs_embeds=embedded, attention_mask=mask, position_ids=position,
                    use_cache=False).last_hidden_state  # fmt: skip


def rounded_means(rows: Sequence[Measures]) -> Measures:
    return {name: round(value, 4) for name, value in means(rows).items()}


def save_llava(config: LlavaTraining, model: LlavaForConditionalGeneration, longest: int,
               tokenizer: PreTrainedTokenizerFast, files: Mapping[str, Any]) -> None:  # fmt: skip
    """Weights in half precision, processor and tokenizer into the `model` folder of a run, or nothing.

    longest: tokens of an answer; files: JSON beside the weights, by name
    """
    side = {"height": config.model.image, "width": config.model.image}
    pixels = LlavaImageProcessorPil(  # pads an image to a square with the mean colour
        do_pad=True, do_resize=True, size=side, do_center_crop=False, crop_size=side, resample=3,
        image_mean=[MEAN] * 3, image_std=[DEVIATION] * 3)  # fmt: skip
    processor = transformers.LlavaProcessor(
        image_processor=pixels, tokenizer=tokenizer, patch_size=PATCH,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template)  # fmt: skip
    half = copy.deepcopy(model).to(torch.float16)
    half.generation_config.update(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, max_new_tokens=longest)  # fmt: skip
    with folder_written_whole(config.out / "model") as partial:
        half.save_pretrained(partial)
        processor.save_pretrained(partial)
        for name, content in files.items():
            write_config(partial / name, content)
    log.info("written: %s", config.out / "model")
