#!/bin/sh
# diffusers 0.42.1: a Stable Diffusion 3 pipeline without its third text encoder is saved and cannot be loaded again.
#
# The encoder (T5, the largest part) may be left out: `text_encoder_3=None, tokenizer_3=None`, which the library documents
# to save memory. `save_pretrained` of such a pipeline logs that the two "cannot be saved" and writes both as [null, null]
# into model_index.json. Loading that folder raises a ValueError that lists what was expected, since they are not among
# the optional components of the class. With both given as None again, the folder loads. The inpainting class behaves
# like the one for text.
#
# Prints a row per class; exits with 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check \
    torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 numpy==2.4.6
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import json
import sys

import diffusers
import transformers

diffusers.utils.logging.disable_progress_bar()
text = transformers.CLIPTextConfig(
    hidden_size=8, intermediate_size=8, num_attention_heads=1, num_hidden_layers=1, projection_dim=8, vocab_size=16,
    max_position_embeddings=8, bos_token_id=0, eos_token_id=1,
)
parts = {
    "transformer": diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=1, caption_projection_dim=8, joint_attention_dim=8, pooled_projection_dim=16,
    ),
    "vae": diffusers.AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=1, latent_channels=4, sample_size=8, shift_factor=0.0
    ),
    "text_encoder": transformers.CLIPTextModelWithProjection(text),
    "text_encoder_2": transformers.CLIPTextModelWithProjection(text),
    "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
}
with open("vocab.json", "w") as file:
    json.dump({"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}, file)
with open("merges.txt", "w") as file:
    file.write("#version: 0.2\n")
for name in ("tokenizer", "tokenizer_2"):
    parts[name] = transformers.CLIPTokenizer("vocab.json", "merges.txt")
left_out = {"text_encoder_3": None, "tokenizer_3": None}
changed = False
for name in ("StableDiffusion3Pipeline", "StableDiffusion3InpaintPipeline"):
    kind = getattr(diffusers, name)
    kind(**parts, **left_out).save_pretrained(name)
    with open(f"{name}/model_index.json") as file:
        index = json.load(file)
    stored = {part: index.get(part) for part in left_out}
    try:
        kind.from_pretrained(name)
        message = "loaded"
    except ValueError as error:
        message = str(error)
    again = kind.from_pretrained(name, **left_out)
    print(f"{name}: {stored}\n  as saved:       {message[message.find('expected'):][:100]}\n  with None again: loaded, {again.text_encoder_3}")
    changed |= stored != {part: [None, None] for part in left_out}
    changed |= "text_encoder_3" not in message or "but only" not in message or again.text_encoder_3 is not None
sys.exit(1 if changed else 0)
PYTHON
echo "as stated: the saved folder loads only when what it lacks is named again"
