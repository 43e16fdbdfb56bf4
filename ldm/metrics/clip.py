"""CLIP: images and texts in one space of features, and quality by two opposite texts; and DINO.

The CLIP with a ResNet is that of CLIP-IQA: images of any size, no positions in the last pooling; its sizes
follow from the weight file. Legend: b images, h w pixels, t texts or tokens, c or d features.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, CLIPModel, CLIPTokenizer

from ldm.checkpoints import load_pretrained, loading
from ldm.files import read_json
from ldm.images import IMAGENET_MEAN, IMAGENET_STD
from ldm.metrics.backbones import fill, read_weight_file
from ldm.registry.models import existing_folder

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GOOD, BAD = "Good photo.", "Bad photo."
SHARPNESS = 100.0  # CLIP's logit scale after training
DINO_SIDE = 224  # pixels
HEAD_CHANNELS = 64  # channels of one attention head
LEAST_SIDE = 64  # pixels; the network halves an image five times
GROWTH = 4  # output channels of a block per inner channel
# CLIP's tokens of "Good photo." and "Bad photo.", between beginning and end.
GOOD_IDS, BAD_IDS = (49406, 886, 1125, 269, 49407), (49406, 2103, 1125, 269, 49407)
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")


class Clip:
    """A CLIP model that sees whole images, squeezed to its square (published for CLIPSim)."""

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, device: torch.device | str) -> None:
        self.model, self.tokenizer, self.device = model.eval().to(device), tokenizer, torch.device(device)
        self.side = int(model.config.vision_config.image_size)
        self.window = int(model.config.text_config.max_position_embeddings)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> "Clip":
        """A `save_pretrained` folder with its tokenizer; of a .bin file nothing but data is unpickled."""
        read_json(existing_folder(folder) / "config.json")
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(load_pretrained(CLIPModel, folder, local_files_only=True), tokenizer, device)

    @torch.inference_mode()
    def images(self, images_u8: Sequence[np.ndarray]) -> np.ndarray:
        """RGB (h, w, 3) uint8 each -> (b, d), of length 1."""
        size = self.side, self.side
        small = [Image.fromarray(image_u8).resize(size, Image.Resampling.BICUBIC) for image_u8 in images_u8]
        values = (np.stack([np.asarray(image, np.float32) for image in small]) / 255 - MEAN) / STD
        pixels = torch.from_numpy(values).permute(0, 3, 1, 2).float().to(self.device)
        return unit(self.model.get_image_features(pixel_values=pixels))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """(t, d), of length 1; texts that are too long are cut."""
        options = {"padding": "max_length", "truncation": True, "max_length": self.window}
        tokens = self.tokenizer(list(texts), return_tensors="pt", **options).to(self.device)
        return unit(self.model.get_text_features(**tokens))

    def quality(self, images_u8: Sequence[np.ndarray]) -> np.ndarray:
        """(b,) in [0, 1]: probability of GOOD against BAD (CLIP-IQA, Wang et al. 2023)."""
        return quality(self.images(images_u8), self.texts((GOOD, BAD)))


class Dino:
    """DINO or DINOv2 from transformers: the class token of the last layer (published: DINO ViT-S/16)."""

    def __init__(self, model: nn.Module, device: torch.device | str = "cpu", side: int = DINO_SIDE) -> None:
        self.model, self.device, self.side = model.eval().to(device), torch.device(device), side

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> "Dino":
        read_json(folder / "config.json")
        return cls(load_pretrained(AutoModel, folder, may_lack="pooler.", local_files_only=True), device)

    @torch.inference_mode()
    def images(self, images_u8: Sequence[np.ndarray]) -> np.ndarray:
        """RGB (h, w, 3) uint8 each -> (b, d), of length 1; the cosine of two rows is their similarity."""
        side, cuts = self.side, []
        for image_u8 in images_u8:  # shorter side scaled, middle cut out
            height, width = image_u8.shape[:2]
            scale = side / min(height, width)
            size = max(side, round(width * scale)), max(side, round(height * scale))
            small = np.asarray(Image.fromarray(image_u8).resize(size, Image.Resampling.BICUBIC))
            top, left = (small.shape[0] - side) // 2, (small.shape[1] - side) // 2
            cut_01 = small[top : top + side, left : left + side].astype(np.float32) / 255
            cuts.append((cut_01 - IMAGENET_MEAN) / IMAGENET_STD)
        pixels = torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2).float().to(self.device)
        return unit(self.model(pixels).last_hidden_state[:, 0])


def unit(features: object) -> np.ndarray:
    """Rows of length 1, from a tensor or from what transformers wraps it in."""
    found = features if isinstance(features, Tensor) else features.pooler_output  # type: ignore[attr-defined]
    return F.normalize(found.float(), dim=-1).cpu().numpy()


def quality(images: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """images (b, d), anchors (2, d) good and bad, all of length 1 -> (b,) in [0, 1]."""
    good, bad = (SHARPNESS * images.astype(np.float64) @ anchors.T).T
    return 1 / (1 + np.exp(bad - good))


class Bottleneck(nn.Module):
    """Residual block that shrinks by averaging, so that nothing is skipped."""

    def __init__(self, before: int, inner: int, stride: int) -> None:
        super().__init__()
        after = GROWTH * inner
        self.conv1, self.bn1 = nn.Conv2d(before, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, after, 1, bias=False), nn.BatchNorm2d(after)
        self.stride = stride
        self.downsample: nn.Sequential | None = None
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        y = self.bn3(self.conv3(self.shrink(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(self.shrink(x))))

    def shrink(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x


class AttentionPool(nn.Module):
    """Attention of the mean to all places; the positions that the file holds are not added (CLIP-IQA)."""

    def __init__(self, places: int, width: int, after: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(places, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, after)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c')."""
        places = x.flatten(2).transpose(1, 2)  # (b, h w, c)
        mean = places.mean(1, keepdim=True)
        places = torch.cat([mean, places], 1)
        q, k, v = self.q_proj(mean), self.k_proj(places), self.v_proj(places)
        q, k, v = (one.unflatten(-1, (-1, HEAD_CHANNELS)).transpose(1, 2) for one in (q, k, v))
        read = F.scaled_dot_product_attention(q, k, v)  # (b, heads, 1, HEAD_CHANNELS)
        return self.c_proj(read.transpose(1, 2).flatten(1))


class Resnet(nn.Module):
    def __init__(self, width: int, blocks: Sequence[int], places: int, after: int) -> None:
        super().__init__()
        sizes = ((3, width // 2), (width // 2, width // 2), (width // 2, width))
        for number, (inside, outside) in enumerate(sizes, 1):
            stride = 2 if number == 1 else 1
            self.add_module(f"conv{number}", nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(outside))
        before = width
        for number, count in enumerate(blocks, 1):
            inner = width * 2 ** (number - 1)
            rest = [Bottleneck(GROWTH * inner, inner, 1) for _ in range(count - 1)]
            first = Bottleneck(before, inner, 1 if number == 1 else 2)
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))
            before = GROWTH * inner
        self.attnpool = AttentionPool(places, before, after)

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, 3, h, w) normalised -> (b, c)."""
        x = pixels
        for number in (1, 2, 3):
            x = F.relu(self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(x)))
        x = F.avg_pool2d(x, 2)
        for number in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{number}")(x)
        return self.attnpool(x)


class TextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // HEAD_CHANNELS, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        inner = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](inner * torch.sigmoid(1.702 * inner))


class ResnetClip(nn.Module):
    """Both sides, under the names of OpenAI's file; made from the shapes of its weights."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        blocks = [len({key.split(".")[2] for key in weights if key.startswith(f"visual.layer{n}.")})
                  for n in (1, 2, 3, 4)]  # fmt: skip
        places = weights["visual.attnpool.positional_embedding"].shape[0]
        width, after = weights["text_projection"].shape
        self.visual = Resnet(weights["visual.layer1.0.conv1.weight"].shape[0], blocks, places, after)
        layers = {key.split(".")[2] for key in weights if key.startswith("transformer.resblocks.")}
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(TextBlock(width) for _ in layers)})
        self.token_embedding = nn.Embedding(weights["token_embedding.weight"].shape[0], width)
        self.positional_embedding = nn.Parameter(torch.zeros(weights["positional_embedding"].shape))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, after))
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def text(self, ids: Sequence[int]) -> Tensor:
        """Tokens from beginning to end -> (c,). What follows the end would not change it."""
        tokens = torch.tensor(ids, device=self.text_projection.device)
        x = (self.token_embedding(tokens) + self.positional_embedding[: len(ids)])[None]
        mask = torch.full((len(ids), len(ids)), float("-inf"), device=x.device).triu(1)
        for block in self.transformer["resblocks"].children():
            x = block(x, mask)
        return self.ln_final(x)[0, -1] @ self.text_projection

    @torch.inference_mode()
    def quality(self, images_u8: Sequence[np.ndarray]) -> np.ndarray:
        """RGB (h, w, 3) uint8 each, of any size -> (b,) in [0, 1]: CLIP-IQA (Wang et al. 2023)."""
        return quality(*map(unit, self.features(images_u8)))

    def features(self, images_u8: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Of the images (b, c), and of the two texts (2, c)."""
        device = self.text_projection.device
        groups: dict[tuple[int, ...], dict[int, Tensor]] = {}  # images of one size go through it together
        for number, image_u8 in enumerate(images_u8):
            h, w = image_u8.shape[:2]
            if min(h, w) < LEAST_SIDE:  # the shorter side gets as many
                scale = LEAST_SIDE / min(h, w)
                size = max(LEAST_SIDE, round(w * scale)), max(LEAST_SIDE, round(h * scale))
                image_u8 = np.asarray(Image.fromarray(image_u8).resize(size, Image.Resampling.BICUBIC))
            pixels = torch.from_numpy((image_u8 / 255 - np.array(MEAN)) / np.array(STD)).float()
            groups.setdefault(tuple(pixels.shape), {})[number] = pixels.permute(2, 0, 1)
        rows: dict[int, Tensor] = {}
        for group in groups.values():
            rows |= zip(group, self.visual(torch.stack(list(group.values())).to(device)), strict=True)
        texts = torch.stack([self.text(GOOD_IDS), self.text(BAD_IDS)])
        return torch.stack([rows[number] for number in range(len(images_u8))]), texts

    @classmethod
    @loading()
    def load(cls, path: Path, device: torch.device | str = "cpu") -> "ResnetClip":
        """RN50.pt as OpenAI distributes it, or its weights as safetensors."""
        weights = read_weight_file(path)
        floats = {key: value.float() for key, value in weights.items() if key not in NOT_WEIGHTS}
        try:
            network = cls(floats)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{path}: not the weights of a CLIP with a ResNet ({error})") from None
        return fill(network, floats, path).to(device)
