#!/bin/sh
# torch 2.13.0: `grid_sample` on a CPU computes where to read in the precision of the image. In half precision it
# reads other pixels than were asked for.
#
# Positions from -1 to 1 become columns by ((x + 1) * width - 1) / 2, in float16 or bfloat16 where the tensors are
# such. From column 128 on bfloat16 knows whole columns only, float16 from column 1,024 on. The image here is
# stripes of 0 and 1, which every precision holds; the positions are rounded to the precision first, so that both
# calls get the same numbers. transformers 5.23.0 reads feature maps in this way in two dozen models: in bfloat16 on
# a CPU the deformable attention of Grounding DINO looks beside what it attends to on its finest map, which is 167
# columns wide for an image of 1,333.
#
# Prints for several widths the share of samples that are off by more than .25; exits with 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch.nn.functional import grid_sample

torch.manual_seed(0)
wrong = {}
for precision in (torch.float16, torch.bfloat16):
    for width in (64, 167, 256, 1024, 4096):
        stripes = (torch.arange(width) % 2).float().expand(1, 1, 4, width)
        grid = (torch.rand(1, 1, 20_000, 2) * 2 - 1).to(precision)
        asked = grid_sample(stripes, grid.float(), align_corners=False)
        given = grid_sample(stripes.to(precision), grid, align_corners=False)
        wrong[precision, width] = ((given.float() - asked).abs() > 0.25).float().mean().item()
        print(f"{str(precision):15} {width:5} columns: {100 * wrong[precision, width]:3.0f} % of the samples off by more than 1/4")
small = wrong[torch.float16, 1024] == 0 and wrong[torch.bfloat16, 64] == 0
large = wrong[torch.float16, 4096] > 0.3 and wrong[torch.bfloat16, 167] > 0.05 and wrong[torch.bfloat16, 1024] > 0.5
sys.exit(0 if small and large else 1)
PYTHON
echo "as stated: half precision on a CPU reads beside the position"
