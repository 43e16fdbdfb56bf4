#!/bin/sh
# Makes the environment if needed and composes one image with the small networks that come with the code.
#   bash scripts/demo.sh [options of `run_inference.py image`]
set -eu
. "$(dirname -- "$0")/setup.sh"
# A network that cuts objects out of photographs, 5 MB; without it GrabCut does.
if [ "${HF_HUB_OFFLINE:-0}" = 0 ] && ! "$VENV_PY" -m ldm.registry pull u2netp; then
    echo "[demo] no cut-out network; later: python -m ldm.registry pull u2netp" >&2
fi
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
# The small networks gain nothing from a second thread, and lose much by it on a busy machine.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

"$VENV_PY" - <<'EOF'
import torch
device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
name = f" ({torch.cuda.get_device_name()})" if device == "cuda" else ""
print(f"[demo] torch {torch.__version__} on {device}{name}")
EOF

# Where the images go: --out among the arguments, else what the configuration says.
out=outputs/demo/composite.png
wanted=
for argument in "$@"; do
    if [ -n "$wanted" ]; then out=$argument wanted=; fi
    case $argument in
    --out) wanted=yes ;;
    --out=*) out=${argument#--out=} ;;
    esac
done
"$VENV_PY" "${AT}run_inference.py" image --config configs/demo.yaml "$@"
echo "[demo] the PNG (recipe inside), the JSON report and the contact sheet:"
for file in "${out%.png}"*.png "${out%.png}"*.json; do
    if [ -e "$file" ]; then echo "[demo]   $file"; fi
done
