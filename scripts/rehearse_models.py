"""Model folders of true size with random weights, in bfloat16, written tensor by tensor.

SIZES are those of the published networks (rehearse_models.yaml).
"""

import json
import math
import os
import re
import shutil
import string
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as hub
import yaml
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from cldm.config import CONFIG_FILE, CompositorConfig, NetworkConfig
from cldm.convert.plan import empty_networks
from cldm.create import backbone, create_autoencoder, noise_schedule
from ldm.checkpoints import empty_parameters, save_model_config, stored_names
from ldm.files import ROOT, read_text, write_json
from ldm.metrics.backbones import Inception, Lpips
from ldm.mllm.templates import TEMPLATES
from ldm.settings.config import write_config
from ldm.weight_files import Entry, entry_of, write_safetensors

PERIOD = 1_048_573  # a prime: the random numbers repeat after so many, rows of a matrix never coincide
SHARD = 5 * 10**9  # bytes of a file, as in the hub's folders
SMALL = ROOT / "assets/tiny/inpainter"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SIZES: dict[str, Any] = {
    "compositor": NetworkConfig(),  # SD-2.1, twice its encoder as control, DINOv2-g
    **yaml.safe_load(read_text(Path(__file__).with_suffix(".yaml"))),
}


@cache
def noise() -> Tensor:
    return torch.randn(PERIOD, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)


def random_entry(shape: tuple[int, ...], norm: bool = False) -> Entry:
    """About 1 for scales of norms, small for the others, so that signals stay finite through all layers."""

    def make() -> Tensor:
        count = math.prod(shape)
        values = noise().repeat(-(-count // PERIOD))[:count].view(shape)
        fan = count // shape[0] if len(shape) > 1 else 0
        return 1 + 0.1 * values if norm else values * (0.7 / fan**0.5 if fan > 1 else 0.02)

    return Entry(shape, torch.bfloat16, make)


def write_network(model: nn.Module, folder: Path, prefix: str = "") -> None:
    """config.json, and weights in files of at most SHARD bytes with their index; buffers keep their values.

    prefix: of the names, where there is no config
    """
    known = hasattr(model, "config")
    folder.mkdir(parents=True, exist_ok=True)
    file = save_model_config(model, folder) if known else folder / "model.safetensors"
    state, tied = model.state_dict(), getattr(model, "all_tied_weights_keys", None) or {}
    names = stored_names(model) if known else {prefix + key: [key] for key in state}
    shards, held = [dict[str, Entry]()], 0
    for name, keys in names.items():
        first = state[keys[0]]
        shape = tuple(first.shape) if len(keys) == 1 else (len(first) * len(keys), *first.shape[1:])
        norm = len(shape) == 1 and name.endswith("weight")
        entry = random_entry(shape, norm) if first.is_meta else entry_of(first)
        if keys[0] in tied:
            continue
        held += (size := entry.dtype.itemsize * math.prod(shape))
        if shards[-1] and held > SHARD:
            shards, held = [*shards, {}], size
        shards[-1][name] = entry
    if len(shards) == 1:
        return write_safetensors(file, shards[0])
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        part = file.with_name(f"{file.stem}-{number:05d}-of-{len(shards):05d}{file.suffix}")
        write_safetensors(part, shard)
        places |= dict.fromkeys(shard, part.name)
    return write_json(Path(f"{file}.index.json"), {"metadata": {}, "weight_map": places})


def write_lora(model: nn.Module, file: Path, rank: int, targets: tuple[str, ...], name: str) -> None:
    """Pairs of random matrices for the layers of these names. name: such as unet.{}.lora.{}.weight"""
    entries = {}
    halves = ("lora_A", "lora_B") if "lora.{}" not in name else ("down", "up")
    for layer, module in model.named_modules():
        if isinstance(module, nn.Linear) and layer.endswith(targets) and "vision" not in layer:
            shapes = (rank, module.in_features), (module.out_features, rank)
            for half, shape in zip(halves, shapes, strict=True):
                entries[name.format(layer, half)] = random_entry(shape)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(file, entries)


def random_network(kind: Any, config: Any, folder: Path) -> Any:
    """A network of the hub's library, without memory for its weights, and its folder."""
    with empty_parameters():
        network = kind(config)
    write_network(network, folder)
    return network


def make_compositor(folder: Path) -> None:
    sizes = SIZES["compositor"]
    for name, network in empty_networks(sizes).items():
        write_network(network, folder / name)
    DDIMScheduler.from_config(noise_schedule(sizes)).save_pretrained(folder / "scheduler")
    write_config(folder / CONFIG_FILE, CompositorConfig("full size, random"))


def make_depth(folder: Path) -> None:
    random_network(hub.DPTForDepthEstimation, hub.DPTConfig(**SIZES["depth"]), folder)


def make_sam(folder: Path) -> None:
    vision = random_network(hub.SamModel, hub.SamConfig(**SIZES["sam"]), folder).config.vision_config
    side, mask = vision.image_size, 4 * vision.image_size // vision.patch_size  # enlarged by the decoder
    hub.SamImageProcessorPil(
        size={"longest_edge": side}, pad_size={"height": side, "width": side},
        mask_size={"longest_edge": mask}, mask_pad_size={"height": mask, "width": mask},
    ).save_pretrained(folder)  # fmt: skip


def make_inpainter(folder: Path) -> None:
    """The model, and beside it in rca/ a LoRA in the released format."""
    sizes = SIZES["compositor"]
    up = tuple("CrossAttnUpBlock2D" if on else "UpBlock2D" for on in sizes.attention[::-1])
    text = {**SIZES["text"], "hidden_size": sizes.token_width}
    layout = {**backbone(sizes), "in_channels": 9, "sample_size": 64, "out_channels": 4, "up_block_types": up}
    with empty_parameters():
        unet = UNet2DConditionModel(**layout)
        write_network(create_autoencoder(sizes.autoencoder), folder / "vae")
    write_network(unet, folder / "unet")
    random_network(hub.CLIPTextModel, hub.CLIPTextConfig(**text), folder / "text_encoder")
    for part in ("tokenizer", "scheduler"):  # the small tokenizer has fewer words, its length is the same
        shutil.copytree(SMALL / part, folder / part)
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionInpaintPipeline"})
    lora = folder.parent / "rca/pytorch_lora_weights.safetensors"
    write_lora(unet, lora, SIZES["rank"]["rca"], ATTENTION, "unet.{}.lora.{}.weight")


def make_mllm(folder: Path, family: str, template: str, **options: Any) -> Any:
    """A LLaVA with its processor, its tokenizer trained on the words of Python's own library."""
    texts = (path.read_text("utf-8", "replace") for path in sorted(Path(os.__file__).parent.glob("*.py")))
    words = sorted({word for text in texts for word in re.findall("[A-Za-z]+", text)})
    basis = hub.LlamaTokenizer(vocab={"<unk>": 0, "<s>": 1, "</s>": 2}, merges=[])
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    words += list("[]():.,<>/-0123456789\n")
    trained = basis.train_new_from_iterator([words], SIZES["words"] - len(letters), show_progress=False)
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    names = dict.fromkeys([*model["vocab"], *letters])
    names |= dict.fromkeys(f"\u2581unused{number}" for number in range(SIZES["words"] - len(names)))
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = hub.LlamaTokenizer(vocab={name: k for k, name in enumerate(names)}, merges=merges)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "extra_special_tokens": ["<image>"]})
    sizes = {**SIZES["llava"], "image_token_index": tokenizer.convert_tokens_to_ids("<image>")}
    kind, config = (getattr(hub, f"{family}{part}") for part in ("ForConditionalGeneration", "Config"))
    network = random_network(kind, config(**sizes), folder)
    vision = network.config.vision_config
    side = {"height": vision.image_size, "width": vision.image_size}
    images = getattr(hub, f"{family}ImageProcessorPil")
    processor = getattr(hub, f"{family}Processor")(
        images(size={"shortest_edge": vision.image_size}, crop_size=side, **options), tokenizer,
        patch_size=vision.patch_size, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATES[template])  # fmt: skip
    processor.save_pretrained(folder)
    return network


def make_llava(folder: Path) -> None:
    """LLaVA-1.5 7B, and beside it in adapter/ one of the released kind, in LLaVA's own layout."""
    network = make_mllm(folder, "Llava", "vicuna_v1", do_pad=True).model
    rank, adapter, layer = SIZES["rank"]["locator"], folder.parent / "adapter", "base_model.model.model.{}"
    file = adapter / "adapter_model.safetensors"
    write_lora(network.language_model, file, rank, LAYERS, f"{layer}.{{}}.weight")
    write_json(adapter / "adapter_config.json", {"r": rank, "lora_alpha": 2 * rank, "peft_type": "LORA"})
    projector = {}
    for name, value in network.multi_modal_projector.named_parameters():
        key = layer.format(f"mm_projector.{name.replace('linear_1', '0').replace('linear_2', '2')}")
        projector[key] = random_entry(tuple(value.shape))
    write_safetensors(adapter / "non_lora_trainables.safetensors", projector)


def make_llava_next(folder: Path) -> None:
    """LLaVA-NeXT 7B, and beside it in multimask/ an adapter of rank 16 in peft's layout."""
    network, rank = make_mllm(folder, "LlavaNext", "llava_hub"), SIZES["rank"]["multimask"]
    adapter = folder.parent / "multimask"
    file = adapter / "adapter_model.safetensors"
    write_lora(network, file, rank, LAYERS, "base_model.model.{}.{}.weight")
    settings = {"r": rank, "lora_alpha": rank, "peft_type": "LORA", "base_model_name_or_path": str(folder)}
    targets = rf".*language_model\..*\.({'|'.join(LAYERS)})"
    write_json(adapter / "adapter_config.json", {**settings, "target_modules": targets})


def make_kosmos(folder: Path) -> None:
    config = hub.Kosmos2Config(**SIZES["kosmos"])
    random_network(hub.Kosmos2ForConditionalGeneration, config, folder)
    size = dict.fromkeys(("height", "width"), config.vision_config.image_size)
    images = hub.CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
    words = hub.CLIPTokenizer.from_pretrained(SMALL / "tokenizer")
    hub.Kosmos2Processor(images, words).save_pretrained(folder)


def make_grounding_dino(folder: Path) -> None:
    config = hub.GroundingDinoConfig(**SIZES["grounding_dino"])
    random_network(hub.GroundingDinoForObjectDetection, config, folder)
    named = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    named |= dict(enumerate(string.ascii_lowercase, 1037))  # the numbers that BERT's vocabulary has
    named |= {number + 26: f"##{letter}" for number, letter in enumerate(string.ascii_lowercase, 1037)}
    vocabulary = {named.get(k, f"[unused{k}]"): k for k in range(config.text_config.vocab_size)}
    words = hub.BertTokenizerFast(vocab=vocabulary)
    hub.GroundingDinoProcessor(hub.GroundingDinoImageProcessorPil(), words).save_pretrained(folder)


def make_judges(folder: Path) -> None:
    """CLIP ViT-B/32, Inception-v3 and the SqueezeNet of LPIPS."""
    random_network(hub.CLIPModel, hub.CLIPConfig(**SIZES["clip"]), folder / "clip")
    hub.CLIPTokenizer.from_pretrained(SMALL / "tokenizer").save_pretrained(folder / "clip")
    with empty_parameters():
        write_network(Inception(), folder / "inception")
        write_network(Lpips().features, folder / "squeezenet", "features.")
