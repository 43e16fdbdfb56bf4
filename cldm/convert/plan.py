"""What goes where when a published checkpoint becomes a model folder: decided from names and shapes.

A plan is made before anything is read or written. Every key of the file is used or known to be unused, and
every weight of ours has an origin; otherwise there is no plan but an error that names the keys.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn
from transformers import Dinov2Model

from cldm.config import NetworkConfig
from cldm.convert.keys import Piece, original_pieces
from cldm.create import create_autoencoder, create_control, create_identity, create_unet
from ldm.checkpoints import drawing, empty_parameters, stored_names
from ldm.weight_files import RETIRED, TensorShape, WeightFile

UNET, VAE = "model.diffusion_model.", "first_stage_model."
ENCODER, PROJECTOR = "cond_stage_model.model.", "cond_stage_model.projector."
CONTROLS: dict[str, dict[str, str]] = {  # prefix of each branch; without one it is copied from the UNet
    "bifrost": {"control_detail": "control_model_detail.", "control_depth": "control_model_depth."},
    "anydoor": {"control_detail": "control_model."},
    "sd21": {},
}
FRESH_CONTROL = ("controlnet_cond_embedding.", "controlnet_down_blocks.", "controlnet_mid_block.")
UNUSED: dict[str, str] = {  # reason -> keys that may stay unused
    "noise schedule, computed anew": (
        r"betas|logvar|lvlb_weights|(?:sqrt_|sqrt_one_minus_|log_one_minus_|sqrt_recip_|sqrt_recipm1_)?"
        r"alphas_cumprod|alphas_cumprod_prev|posterior_(?:variance|log_variance_clipped|mean_coef[12])"
    ),
    "text encoder, replaced by DINOv2": (
        r"cond_stage_model\.model\.(?:positional_embedding|text_projection|logit_scale|attn_mask"
        r"|(?:token_embedding|ln_final|transformer)\..+)"
    ),
    "moving averages and their counters": r"model_ema\..+",
    "first convolution of a control branch, never used": (
        r"control_model(?:_detail|_depth)?\.input_blocks\.0\.0\.(?:weight|bias)"
    ),
    "classifier of the depth network's pre-training": r"pretrained\.model\.head\.(?:weight|bias)",
    "buffers that the libraries compute anew": RETIRED.pattern,
}
OTHER_ENCODER = {
    "DINOv2 inside the file, another source was named": re.escape(ENCODER)
    + r"(?:cls_token|pos_embed|mask_token|(?:patch_embed|blocks|norm)\..+)"
}
KINDS = {  # first name of a key -> what the file looks like
    "control_model_detail": "a Bifrost checkpoint (verb bifrost)",
    "control_model": "an AnyDoor or single-control checkpoint (verb anydoor)",
    "model": "a Stable Diffusion checkpoint (verb sd21)",
    "blocks": "a DINOv2 file (verb dinov2)",
    "pretrained": "a DPT file (verb dpt)",
}


@dataclass(frozen=True)
class Origin:
    """Where one weight of ours comes from."""

    how: str  # file (its own weight), copy (the UNet's weight), zero, fresh (initialised from the seed)
    shape: TensorShape
    source: WeightFile | None = None
    key: str = ""
    index: int = 0
    of: int = 1
    positions: bool = False  # interpolate the position embedding


@dataclass
class Plan:
    parts: dict[str, dict[str, Origin]]  # folder -> weight -> origin
    unused: dict[str, list[str]]  # reason -> keys of the file


@dataclass
class KeyCheck:
    """What a plan takes from a file; everything that does not fit is named in one error."""

    file: WeightFile
    used: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def take(
        self, prefix: str, piece: Piece, shape: TensorShape, *, how: str = "file", positions: bool = False
    ) -> Origin:
        """The origin of a weight of `shape`; a missing or mis-shaped key is noted for the error."""
        key = prefix + piece.key
        self.used.add(key)
        got = self.file.shapes.get(key)
        if got is None:
            self.missing.append(key)
            return Origin(how, shape)
        needed = (shape[0] * piece.of, *shape[1:])
        resized = positions and got != shape
        square = resized and len(got) == 3 and (got[1] - 1) == round((got[1] - 1) ** 0.5) ** 2
        if got not in (needed, (*needed, 1, 1)) and not (square and got[2] == shape[2]):
            self.misshapen.append(f"{key} has shape {got}, needs {needed}")
        return Origin(how, shape, self.file, key, piece.index, piece.of, positions=resized)

    def finish(self, may_stay: Mapping[str, str] = UNUSED) -> dict[str, list[str]]:
        """Unused keys by reason; raises ValueError about everything that does not fit."""
        unused: dict[str, list[str]] = {reason: [] for reason in may_stay}
        unknown: list[str] = []
        for key in (key for key in self.file.shapes if key not in self.used):
            reasons = (reason for reason, pattern in may_stay.items() if re.fullmatch(pattern, key))
            unused.get(next(reasons, ""), unknown).append(key)
        findings = {"missing": self.missing, "wrong shape": self.misshapen, "unknown": sorted(unknown)}
        notes = [f"{len(keys)} {what}: {', '.join(keys[:3])}" for what, keys in findings.items() if keys]
        if notes:
            starts = Counter(key.split(".")[0] for key in self.file.shapes)
            looks = next((f". It looks like {kind}" for start, kind in KINDS.items() if starts[start]), "")
            raise ValueError(f"{self.file.path}: {'; '.join(notes)}{looks}")
        return {reason: keys for reason, keys in unused.items() if keys}


def empty_networks(network: NetworkConfig) -> dict[str, nn.Module]:
    """All networks of a compositor without memory for their weights, by folder."""
    with drawing(0), empty_parameters():
        identity = create_identity(network)
        return {
            "unet": create_unet(network),
            "control_detail": create_control(network, 4),
            "control_depth": create_control(network, 3),
            "image_encoder": identity.encoder,
            "projector": identity.projector,
            "vae": create_autoencoder(network.autoencoder),
        }


def plan_compositor(
    kind: str, file: WeightFile, networks: Mapping[str, nn.Module], encoder: WeightFile | None = None
) -> Plan:
    """Plan for a released checkpoint of `kind`; encoder: a DINOv2 file or folder for files without one."""
    if encoder is None and ENCODER + "cls_token" not in file.shapes:
        wrong = f"{file.path}: has no DINOv2 weights; name a file or folder that has them with --dinov2"
        raise ValueError(f"{wrong} (dinov2_vitg14_pretrain.pth, or the folder of facebook/dinov2-giant)")
    prefixes = {"unet": UNET, "vae": VAE, "projector": PROJECTOR, **CONTROLS[kind]}
    check, parts = KeyCheck(file), {}
    for name, model in networks.items():
        if name == "image_encoder" and encoder is not None:
            parts[name] = plan_single(model, encoder).parts[""]
        elif name == "image_encoder":
            parts[name] = plan_encoder(model, ENCODER, check)
        elif name == "projector" and PROJECTOR + "weight" not in file.shapes and kind == "sd21":
            weights = model.state_dict()
            parts[name] = {key: Origin("fresh", tuple(value.shape)) for key, value in weights.items()}
        else:
            parts[name] = plan_network(model, prefixes.get(name), check)
    return Plan(parts, check.finish(UNUSED if encoder is None else UNUSED | OTHER_ENCODER))


def plan_single(model: nn.Module, file: WeightFile) -> Plan:
    """Plan for one vision transformer (DINOv2, DPT) from its released file, or from any known folder."""
    check = KeyCheck(file)
    plan = plan_encoder if isinstance(model, Dinov2Model) else plan_network
    return Plan({"": plan(model, "", check)}, check.finish())


def plan_network(model: nn.Module, prefix: str | None, check: KeyCheck) -> dict[str, Origin]:
    """Every weight of a network. prefix None: a control branch that copies the UNet, its hints are fresh."""
    is_linear = isinstance(model, nn.Linear)
    pieces = {key: Piece(key) for key in model.state_dict()} if is_linear else original_pieces(model)
    origins = {}
    for key, value in model.state_dict().items():
        shape = tuple(value.shape)
        if key.startswith("conv_in.") and (prefix is None or prefix.startswith("control_model")):
            origins[key] = Origin("zero", shape)
        elif prefix is None and key.startswith(FRESH_CONTROL):
            origins[key] = Origin("fresh", shape)
        else:
            how = "copy" if prefix is None else "file"
            origins[key] = check.take(UNET if prefix is None else prefix, pieces[key], shape, how=how)
    return origins


def plan_encoder(model: nn.Module, prefix: str, check: KeyCheck) -> dict[str, Origin]:
    """DINOv2 from its original names, or from a folder of transformers 4 or 5."""
    pieces = original_pieces(model)
    if "embeddings.cls_token" in check.file.shapes:
        prefix, hub = "", stored_names(model).items()
        held = {
            key: Piece(name, index, len(keys)) for name, keys in hub for index, key in enumerate(keys)
            if name in check.file.shapes}  # fmt: skip
        pieces = {key: held.get(key, Piece(key)) for key in pieces}
    return {
        key: check.take(prefix, pieces[key], tuple(value.shape), positions="position" in key)
        for key, value in model.state_dict().items()
    }
