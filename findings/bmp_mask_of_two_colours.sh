#!/bin/sh
# Pillow 12.3.0: a mask as an indexed BMP of two colours, black and white, is read as black.
#
# Annotation tools write masks as 8-bit BMP files with a palette of the colours in use. Where these are black and white only,
# Pillow opens the file in mode "1" and reads its bytes, one for each pixel, as eight pixels each: the mask of 400 pixels that
# Pillow itself wrote comes back empty. OpenCV reads the same file right; with a third colour in the palette Pillow does too.
#
# Prints a row per file; exits with 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check \
    pillow==12.3.0 opencv-python-headless==5.0.0.93 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import cv2
import numpy as np
import PIL
from PIL import Image

mask = np.zeros((48, 64), np.uint8)
mask[10:30, 10:30] = 1
print("Pillow", PIL.__version__, "- set pixels of a mask of", int(mask.sum()))
found = {}
for name, palette in (("two colours", [0, 0, 0, 255, 255, 255]), ("three colours", [0, 0, 0, 255, 255, 255, 255, 0, 0])):
    image = Image.frombytes("P", (64, 48), mask.tobytes())
    image.putpalette(palette)
    image.save("mask.bmp")
    with Image.open("mask.bmp") as read:
        pillow = int(np.count_nonzero(np.asarray(read.convert("L"))))
        opencv = int(np.count_nonzero(cv2.imread("mask.bmp", cv2.IMREAD_GRAYSCALE)))
        print(f"{name:14} opened in mode {read.mode!r}: Pillow {pillow}, OpenCV {opencv}")
    found[name] = pillow, opencv
sys.exit(0 if found == {"two colours": (0, 400), "three colours": (400, 400)} else 1)
PYTHON
echo "as stated: the mask of two colours is lost"
