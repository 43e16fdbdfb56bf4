"""A measurement of `benchmarks.published`, in the folder of this or an earlier revision.

published STEPS | paint STEPS RUN SPEED | again STEPS RUN SPEED | decode 0 0 kl|tiny: networks of true size
with random weights, 512 px, one image.
"""

import json
import resource
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from itertools import islice, pairwise
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

SIDE, LATENT, REFERENCE = 512, 64, 224
NOW = find_spec("cldm.config") is not None  # else revision 8f05625
create = import_module("cldm.create")
CONFIG = getattr(import_module("cldm.config"), "NetworkConfig")() if NOW else create.NetworkConfig()  # noqa: B009


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def run_published(steps: int, whole: int) -> dict[str, Any]:
    """Two encodings of references, `steps` steps of `whole`, one decoding."""
    model_of, latents = import_module("cldm.model"), import_module("ldm.latents")
    sampler = import_module("benchmarks.published_model").PublishedSampler
    identity, started = create.create_identity(CONFIG).eval(), time.process_time()
    references = draw(1, 3, REFERENCE, REFERENCE), torch.zeros(1, 3, REFERENCE, REFERENCE)
    tokens, null = map(identity, references)
    encode_s, identity = time.process_time() - started, torch.nn.Module()  # its memory is free again
    unet, *nets = (
        create.create_unet(CONFIG),
        create.create_control(CONFIG, 4),
        create.create_control(CONFIG, 3),
    )
    space = latents.LatentSpace(create.create_autoencoder(CONFIG.autoencoder))
    detail, depth = map(model_of.ControlBranch, nets)
    model = SimpleNamespace(unet=unet, detail=detail, depth=depth, latent_space=space)
    hints, noise = (draw(1, 4, SIDE, SIDE), draw(1, 3, SIDE, SIDE)), draw(1, 4, LATENT, LATENT)
    ticks, x = [time.process_time()], noise
    for x in islice(sampler(model).sample(noise, tokens, null, hints, whole), steps):  # noqa: B007
        ticks.append(time.process_time())
        sys.stderr.write(f"step {len(ticks) - 1}: {ticks[-1] - ticks[-2]:.2f} s\n")
    space.decode(x)
    decode_s, spent = time.process_time() - ticks[-1], [after - before for before, after in pairwise(ticks)]
    total = encode_s + (sum(spent) if steps == whole else median(spent) * whole) + decode_s
    return {"tokens_s": encode_s, "steps_s": spent, "decode_s": decode_s, "cpu_s": total}


def run_decoder(kind: str) -> dict[str, Any]:
    """The fastest of three decodings of the latents of an image, bfloat16, by SD's autoencoder or TAESD."""
    space = import_module("ldm.latents").LatentSpace
    torch.set_default_dtype(torch.bfloat16)
    vae = import_module("diffusers").AutoencoderTiny()
    vae = create.create_autoencoder(CONFIG.autoencoder) if kind == "kl" else vae
    torch.set_default_dtype(torch.float32)
    model = SimpleNamespace(latent_space=space(vae.eval()), dtype=torch.bfloat16, graphs=None)
    model.to = model.latent_space.to
    painter, spent = import_module("cldm.pipeline").CompositorPipeline(model), []
    for _ in range(3):
        started = time.process_time()
        painter.decode(draw(1, 4, LATENT, LATENT))
        spent.append(time.process_time() - started)
    return {"cpu_s": min(spent), "decode_s": spent}


def run_painter(steps: int, whole: int, speed: str, again: bool = False) -> dict[str, Any]:
    """One image; with fewer steps than the `whole` has, the others count as the median one.

    again: after one with another seed, of which tokens and residuals were kept
    """
    pipeline = import_module("cldm.pipeline")
    config = import_module("cldm.config" if NOW else "cldm.pretrained")
    shortcuts = config.SPEEDS[speed] if NOW else {}
    sampling = config.Sampling("unipc", steps=steps, guidance=5.0, init="noise", **shortcuts)
    torch.set_default_dtype(torch.bfloat16)
    model = create.create_compositor(CONFIG).eval()
    torch.set_default_dtype(torch.float32)
    edit = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    edit[:, 100:400, 100:400] = True
    pair = SimpleNamespace(
        reference_01=draw(3, REFERENCE, REFERENCE), detail_pm1=draw(4, SIDE, SIDE),
        depth_01=draw(3, SIDE, SIDE), background_pm1=draw(3, SIDE, SIDE), edit_mask=edit)  # fmt: skip
    ticks: list[float] = []

    def on_step(step: Any) -> None:
        ticks.append(time.process_time())
        sys.stderr.write(f"step {len(ticks)}: {ticks[-1] - ticks[0]:.2f} s\n")

    held: dict[str, Any] = {}
    if NOW:
        monitor = import_module("ldm.denoise").Monitor(on_step=on_step, progress=False)
        kept = import_module("ldm.recent").Recent(2**30 if again else 0)
        painter = pipeline.CompositorPipeline(model, recent=kept, residuals=kept)
        if again:
            first = time.process_time()
            painter.paint(pair, [1], sampling, monitor=monitor)
            held = {"first_cpu_s": time.process_time() - first, "kept_mb": round(kept.held / 1e6, 1)}
            ticks.clear()
    started = time.process_time()
    if NOW:
        painter.paint(pair, [0], sampling, monitor=monitor)
    else:
        pipeline.paint(model, pair, [0], sampling, on_step=on_step, progress=False)
    total = time.process_time() - started
    spent = [after - before for before, after in pairwise(ticks)]  # of all steps but the first
    total += (whole - steps) * median(spent)
    size = {name: sum(w.nbytes for w in part.parameters()) / 2**30 for name, part in model.named_children()}
    stage = size["unet"] + size["detail"] + size["depth"]  # on the device together
    found = {"cpu_s": total, "steps_s": spent, **held, "networks_gib": sum(size.values())}
    return {**found, "largest_stage_gib": stage}


if __name__ == "__main__":
    torch.set_num_threads(1)
    work, *numbers = sys.argv[1:]
    with torch.inference_mode():
        few, total = map(int, numbers[:2])
        if work == "published":
            row = run_published(few, total)
        elif work == "decode":
            row = run_decoder(numbers[2])
        else:
            row = run_painter(few, total, numbers[2], work == "again")
    row["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sys.stdout.write(json.dumps(row) + "\n")
