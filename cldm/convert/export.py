"""Our folders -> the original single-file layouts: the way back of `cldm.convert`.

Every weight that does something returns bit by bit. What is not kept is made again and named: the noise
schedule's buffers are computed, the unused first convolution of each control branch is written as zeros.
"""

import filecmp
import logging
from functools import partial as bound
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, DDIMScheduler
from torch import Tensor
from transformers import Dinov2Model

from cldm.config import CONFIG_FILE, ExportSettings, require_complete
from cldm.convert.convert import POSITIONS
from cldm.convert.keys import RULES, Piece, original_pieces
from cldm.convert.plan import CONTROLS, ENCODER, PROJECTOR, UNET, VAE
from ldm.checkpoints import build_model, empty_parameters, stored_names
from ldm.files import read_json, set_aside, written_whole
from ldm.weight_files import Entry, WeightFile, entry_of, is_live, open_weights, write_safetensors

log = logging.getLogger(__name__)

NETWORKS = {kind.__name__: kind for kind in RULES}


def export(settings: ExportSettings) -> None:
    """A folder of ours -> the original single-file layout."""
    folder, controls = settings.source, CONTROLS[settings.layout]
    single = (folder / "config.json").is_file()
    if single:
        entries = network_entries(folder, "", settings.positions)
    else:
        require_complete(folder)
        entries = {key: entry_of(value) for key, value in schedule_buffers(folder / "scheduler").items()}
        log.info("computed anew: %s", ", ".join(entries))
        for name, prefix in {"unet": UNET, "vae": VAE, "image_encoder": ENCODER, **controls}.items():
            entries.update(network_entries(folder / name, prefix, settings.positions))
        projector = open_weights(folder / "projector")
        for key, shape in projector.shapes.items():
            entries[PROJECTOR + key] = Entry(shape, projector.dtypes[key], bound(projector.read, key))
        for prefix in controls.values():
            log.info("written as zeros, never used: %sinput_blocks.0.0.weight and .bias", prefix)
        if settings.layout == "anydoor":
            log.info("left out, the layout has no place for it: control_depth, settings of %s", CONFIG_FILE)
    with written_whole(settings.out) as partial:
        if settings.out.suffix == ".safetensors":
            write_safetensors(partial, entries, progress=True)
        else:
            weights = {key: entry.make().to(entry.dtype).contiguous() for key, entry in entries.items()}
            with partial.open("xb") as file:  # its name would become a part of the file
                torch.save(weights if single else {"state_dict": weights}, file)
        same = settings.out.is_file() and filecmp.cmp(settings.out, partial, shallow=False)
        if not (settings.overwrite or same):
            set_aside([settings.out])
    log.info("wrote %s: %d keys", settings.out, len(entries))


def network_entries(folder: Path, prefix: str, positions: Path | None) -> dict[str, Entry]:
    """The original keys of one network's folder, chunks joined."""
    config = read_json(folder / "config.json")
    named = config.get("_class_name", (config.get("architectures") or ["?"])[0])
    if named not in NETWORKS:
        raise ValueError(f"{folder}: a {named} has no original layout; known: {', '.join(NETWORKS)}")
    with empty_parameters():
        model = build_model(NETWORKS[named], config, folder)
    file = open_weights(folder)
    held = {*filter(is_live, file.shapes)}
    absent = min((sorted({*names} ^ held) for names in (model.state_dict(), stored_names(model))), key=len)
    if absent:
        raise ValueError(f"{folder}: weights missing or unknown: {', '.join(absent[:3])}")
    chunks: dict[str, list[tuple[Piece, str]]] = {}
    for key, piece in original_pieces(model, held).items():
        chunks.setdefault(piece.key, []).append((piece, key))
    entries = {prefix + key: joined(pieces, file) for key, pieces in chunks.items()}
    if isinstance(model, ControlNetModel):
        for key in ("input_blocks.0.0.weight", "input_blocks.0.0.bias"):
            zero = torch.zeros(entries[prefix + key].shape, dtype=entries[prefix + key].dtype)
            entries[prefix + key] = entry_of(zero)
    if isinstance(model, Dinov2Model):
        entries[prefix + "pos_embed"] = entry_of(full_positions(folder, file, positions))
    return entries


def joined(pieces: list[tuple[Piece, str]], file: WeightFile) -> Entry:
    keys = [key for _, key in sorted(pieces, key=lambda pair: pair[0].index)]
    shape, dtype = file.shapes[keys[0]], file.dtypes[keys[0]]
    whole = (shape[0] * len(keys), *shape[1:], *(1,) * pieces[0][0].ones) if shape else shape
    return Entry(whole, dtype, lambda: torch.cat([file.read(key) for key in keys]).reshape(whole))


def full_positions(folder: Path, file: WeightFile, named: Path | None) -> Tensor:
    """DINOv2's position embedding before it was interpolated."""
    ours = file.read("embeddings.position_embeddings")
    kept = folder / POSITIONS
    if kept.is_file():
        return open_weights(kept).read("pos_embed")
    if named is None:
        raise ValueError(
            f"{kept} is missing, so only the interpolated position embedding is known; "
            "name the original one with --positions (a DINOv2 file, or the folder that training started from)"
        )
    file = open_weights(named / POSITIONS if (named / POSITIONS).is_file() else named)
    for key in ("pos_embed", ENCODER + "pos_embed", "embeddings.position_embeddings"):
        if key in file.shapes:
            return file.read(key).to(ours.dtype)
    raise ValueError(f"{named}: has no position embedding (pos_embed)")


def schedule_buffers(folder: Path) -> dict[str, Tensor]:
    """The 13 buffers of the original diffusion class, float32, from the scheduler's betas (in float64)."""
    config = DDIMScheduler.from_config(read_json(folder / "scheduler_config.json")).config
    if config.beta_schedule != "scaled_linear" or config.rescale_betas_zero_snr:
        raise ValueError(f"{folder}: the original layout knows SD's scaled-linear schedule only")
    ends = (config.beta_start**0.5, config.beta_end**0.5)
    betas = torch.linspace(*ends, config.num_train_timesteps, dtype=torch.float64).numpy() ** 2
    alphas = np.cumprod(1 - betas)
    before = np.append(1.0, alphas[:-1])
    variance = betas * (1 - before) / (1 - alphas)
    buffers = {
        "betas": betas,
        "alphas_cumprod": alphas,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(alphas),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - alphas),
        "log_one_minus_alphas_cumprod": np.log(1 - alphas),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / alphas),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / alphas - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - alphas),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - alphas),
        "logvar": np.zeros_like(betas),
    }
    return {key: torch.from_numpy(value.astype(np.float32)) for key, value in buffers.items()}
