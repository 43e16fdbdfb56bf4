#!/bin/sh
# diffusers 0.42.1: with the spacing "trailing", 62 of the numbers of steps from 1 to 1,000 give one timestep too many,
# -1 at the end. DDIM, DDPM and PNDM look its noise up from the end of their table: the last step treats the finished
# image as if it were all noise, and 61 steps give an image of 12 times the contrast that 60 and 62 give. No warning.
#
# The timesteps are numpy.arange(1000, 0, -1000 / steps), which by rounding sometimes has one value just above 0
# more. "trailing" is what models with zero terminal signal need, and the few-step ones.
#
# Pixels of a known normal distribution (standard deviation .5) are sampled with the exact noise prediction for it.
# Prints the numbers of steps and the standard deviation of what comes out; exits with 1 if that changes.
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
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler

torch.set_num_threads(1)
SPREAD = 0.5
more = {DDIMScheduler: {"clip_sample": False}, PNDMScheduler: {"skip_prk_steps": True}}


def made(kind, steps):
    """A scheduler, and its timesteps as tensors."""
    scheduler = kind(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing", **more.get(kind, {})
    )
    scheduler.set_timesteps(steps)
    return scheduler, scheduler.timesteps


def spread(kind, steps):
    """Standard deviation of the samples; .5 is right."""
    scheduler, times = made(kind, steps)
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    for t in times:
        a = scheduler.alphas_cumprod[max(int(t), 0)]
        x = scheduler.step((1 - a).sqrt() * x / (a * SPREAD**2 + 1 - a), t, x).prev_sample
    return float(x.std())


as_stated = True
for kind in (DDIMScheduler, PNDMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler):
    more_than_asked = [steps for steps in range(1, 1001) if made(kind, steps)[1].min() < 0]
    print(f"{kind.__name__}: {len(more_than_asked)} numbers of steps end at -1: {more_than_asked[:5]} ...")
    as_stated &= len(more_than_asked) == 62 and more_than_asked[:4] == [61, 103, 121, 122]
for kind in more:
    around = {steps: spread(kind, steps) for steps in (60, 61, 62, 103, 201)}
    print(f"{kind.__name__}:", "  ".join(f"{steps} steps {one:.3f}" for steps, one in around.items()))
    as_stated &= abs(around[60] - SPREAD) < 0.05 and abs(around[62] - SPREAD) < 0.05 and around[61] > 5
sys.exit(0 if as_stated else 1)
PYTHON
echo "as stated: one timestep too many, at -1, and the image is lost"
