#!/bin/sh
# diffusers 0.42.1: a pipeline that came with its own code cannot be loaded after `save_pretrained`.
#
# A folder may hold the code of its pipeline: `_class_name` in model_index.json is then [file, class], and
# `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` reads it. `save_pretrained` of that pipeline,
# as after a fine-tuning or a change of scheduler, writes the networks but not the file of the code, and the bare
# name of the class. The new folder looks complete; only loading it says that diffusers has no such class.
#
# A pipeline of one small network is loaded, saved and loaded again. Exits with 1 if that works some day.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check \
    torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
cd "$folder"
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import json
import pathlib
import sys

import diffusers

diffusers.utils.logging.set_verbosity_error()
first, second = pathlib.Path("first"), pathlib.Path("second")
first.mkdir()
network = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=1)
network.save_pretrained(first / "vae")
(first / "pipeline_own.py").write_text(
    "from diffusers import DiffusionPipeline\n"
    "class OwnPipeline(DiffusionPipeline):\n"
    "    def __init__(self, vae):\n"
    "        super().__init__()\n"
    "        self.register_modules(vae=vae)\n"
)
index = {"_class_name": ["pipeline_own", "OwnPipeline"], "vae": ["diffusers", "AutoencoderKL"]}
(first / "model_index.json").write_text(json.dumps(index))
pipe = diffusers.DiffusionPipeline.from_pretrained(first, trust_remote_code=True)
pipe.save_pretrained(second)
name = json.loads((second / "model_index.json").read_text())["_class_name"]
files = sorted(path.name for path in second.iterdir())
print(f"loaded {type(pipe).__name__}; the saved folder holds {files}, its class is {name!r}")
try:
    again = type(diffusers.DiffusionPipeline.from_pretrained(second, trust_remote_code=True)).__name__
except Exception as error:
    again = f"{type(error).__name__}: {str(error).splitlines()[0]}"
print(f"loaded again: {again}")
sys.exit(0 if "pipeline_own.py" not in files and again != "OwnPipeline" else 1)
PYTHON
