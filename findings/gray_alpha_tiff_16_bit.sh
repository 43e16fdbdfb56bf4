#!/bin/sh
# OpenCV 5.0.0: a 16-bit depth map as TIFF with an alpha channel is cut to 8 bits, without a word.
#
# Depth in 16 bits comes as gray, gray + alpha or RGB, in PNG and in TIFF; the alpha says where there is a measurement.
# `IMREAD_UNCHANGED` promises the file's own depth and keeps it for RGB as TIFF and for gray + alpha as PNG. For gray + alpha
# as TIFF it gives 8 bits: of a ramp of 2,001 levels 9 are left, which makes occlusion a staircase of nine planes.
#
# Prints a row per file; exits with 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check \
    opencv-python-headless==5.0.0.93 numpy==2.4.6 tifffile==2026.3.3 pypng==0.20220715.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import cv2
import numpy as np
import png
import tifffile

ramp = np.linspace(600, 2600, 64 * 48).round().astype(np.uint16).reshape(48, 64)
pair = np.dstack([ramp, np.full_like(ramp, 65535)])
cv2.imwrite("rgb.tif", np.dstack([ramp] * 3))
with open("gray_alpha.png", "wb") as file:
    png.Writer(64, 48, greyscale=True, alpha=True, bitdepth=16).write(file, pair.reshape(48, -1).tolist())
tifffile.imwrite("gray_alpha.tif", pair, photometric="minisblack", extrasamples=["unassalpha"])
print("OpenCV", cv2.__version__)
changed = False
for name, right in (("rgb.tif", True), ("gray_alpha.png", True), ("gray_alpha.tif", False)):
    read = cv2.imread(name, cv2.IMREAD_UNCHANGED)
    first = read if read.ndim == 2 else read[..., 0]
    kept = read.dtype == np.uint16 and np.array_equal(first, ramp)
    print(f"{name:15} {read.dtype!s:7} {read.shape!s:12} levels {len(np.unique(first)):5} from {first.min():4} to {first.max():4}  kept {kept}")
    changed |= kept != right
sys.exit(1 if changed else 0)
PYTHON
echo "as stated: gray + alpha in 16 bits loses eight of them as TIFF only"
