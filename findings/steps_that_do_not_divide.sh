#!/bin/sh
# diffusers 0.42.1: with a number of steps that does not divide the training's 1,000 timesteps, DDIM and PNDM leave
# noise in the image, and every scheduler with the spacing "leading" (Stable Diffusion's) starts as if less noise
# were there. Nothing warns; 501 steps are far worse than 50.
#
# "trailing" and "linspace" put the timesteps 1000 / steps apart, but a step of DDIM or PNDM removes the noise of
# 1000 // steps timesteps: of 501 steps half the noise stays. "leading" rounds the distance down, so that 501 steps
# begin at timestep 501, with an input that is all noise. 1,000 steps of it begin at timestep 1,000, which is not there.
#
# Pixels of a known normal distribution (standard deviation .5) are sampled with the exact noise prediction for it.
# Prints the standard deviation of what comes out; exits with 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check \
    torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler

torch.set_num_threads(1)
SPREAD = 0.5
noise_schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
more = {DDIMScheduler: {"clip_sample": False}, PNDMScheduler: {"skip_prk_steps": True}, EulerDiscreteScheduler: {}}


def spread(kind, spacing, steps):
    """Standard deviation of the samples; .5 is right."""
    scheduler = kind(**noise_schedule, **more[kind], timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    kept = torch.cat([scheduler.alphas_cumprod.double(), scheduler.alphas_cumprod[-1:].double()])
    for t in scheduler.timesteps:
        low = int(t)
        if low >= 1000:
            return float("nan")
        a = torch.lerp(kept[low], kept[low + 1], float(t) - low)
        seen = scheduler.scale_model_input(x, t)
        x = scheduler.step((1 - a).sqrt() * seen / (a * SPREAD**2 + 1 - a), t, x).prev_sample
    return float(x.std())


found = {}
for kind in more:
    for spacing in ("leading", "trailing", "linspace"):
        row = []
        for steps in (50, 400, 500, 501, 600, 1000):
            found[kind, spacing, steps] = spread(kind, spacing, steps)
            row.append(f"{steps} steps {found[kind, spacing, steps]:.2f}")
        print(f"{kind.__name__:23} {spacing:9}", "  ".join(row))
bad = [found[kind, spacing, 501] for kind in (DDIMScheduler, PNDMScheduler) for spacing in ("trailing", "linspace")]
late = [found[kind, "leading", 501] for kind in more]
good = [found[kind, spacing, 500] for kind in more for spacing in ("leading", "trailing")]
good += [found[EulerDiscreteScheduler, spacing, 501] for spacing in ("trailing", "linspace")]
beyond = [found[kind, "leading", 1000] for kind in more]
as_stated = min(bad) > 0.65 and min(late) > 0.54 and max(abs(one - SPREAD) for one in good) < 0.02
sys.exit(0 if as_stated and all(one != one for one in beyond) else 1)
PYTHON
echo "as stated: numbers of steps that do not divide the timesteps leave noise, or start too late"
