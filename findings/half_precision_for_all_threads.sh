#!/bin/sh
# transformers 5.23.0 and diffusers 0.42.1: while one thread loads a model in half precision, tensors that other
# threads make are half precision too.
#
# `from_pretrained(folder, dtype=torch.float16)` builds the network under `torch.set_default_dtype(float16)`, and
# torch 2.13.0 has one default dtype for all threads. A server that loads its second model while the first one
# works therefore computes with `torch.linspace`, `torch.ones` and the like at 11 bits for some milliseconds to
# seconds: time steps of a schedule, position codes and masks differ, no error and no warning. diffusers does the
# same with `torch_dtype`.
#
# Another thread makes one tensor while the constructor of the network runs. Prints its type for every library and
# precision; exits with 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 diffusers==0.42.1 accelerate==1.15.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import threading

import diffusers
import torch
import transformers

seen = []


def look():
    """What a thread that has nothing to do with the loading gets from torch."""
    thread = threading.Thread(target=lambda: seen.append(torch.linspace(0, 1, 2).dtype))
    thread.start()
    thread.join()


def at_first(module, name, parameter):
    """Called by torch for every weight of a network that is being built."""
    if not seen:
        look()


torch.nn.modules.module.register_module_parameter_registration_hook(at_first)
small = transformers.BertConfig(
    vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
)
transformers.BertModel(small).save_pretrained("bert")
diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=1).save_pretrained("vae")
models = [("transformers", transformers.BertModel, "bert", "dtype"), ("diffusers", diffusers.AutoencoderKL, "vae", "torch_dtype")]
changed = False
for library, kind, place, option in models:
    for precision in (torch.float32, torch.float16, torch.bfloat16):
        seen.clear()
        kind.from_pretrained(place, **{option: precision})
        look()
        during, after = seen
        print(f"{library:12} loads in {str(precision):14}  another thread gets {str(during):14}  afterwards {after}")
        changed |= during != precision or after != torch.float32
sys.exit(1 if changed else 0)
PYTHON
echo "as stated: other threads get the precision that is being loaded"
