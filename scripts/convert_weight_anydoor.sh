#!/bin/sh
# Makes a compositor folder out of the AnyDoor weights: at once usable for inference, and a start for training.
#   sh scripts/convert_weight_anydoor.sh                           models/released/anydoor -> models/bifrost_start
#   sh scripts/convert_weight_anydoor.sh --source FILE --out FOLDER [more options of `cldm.convert anydoor`]
set -eu
. "$(dirname -- "$0")/setup.sh"
released=${BIFROST_MODELS:-models}/released/anydoor

source= out= report=
for argument in "$@"; do
    case $argument in
    --source | --source=*) source=yes ;;
    --out | --out=*) out=yes ;;
    --report | --report=*) report=yes ;;
    --help) exec "$VENV_PY" -m cldm.convert anydoor --help ;;
    esac
done
if [ -z "$source" ]; then
    found=
    for file in "$released"/*.safetensors "$released"/*.ckpt "$released"/*.pth; do
        if [ -z "$found" ] && [ -f "$file" ]; then found=$file; fi
    done
    if [ -z "$found" ]; then
        echo "[convert] error: no weight file in $released; this gets it:" >&2
        echo "    $VENV_PY -m ldm.registry pull anydoor-checkpoint" >&2
        exit 2
    fi
    set -- --source "$found" "$@"
fi
folder=models/bifrost_start
[ -n "$out" ] || set -- --out "$folder" "$@"
if [ -z "$report" ] && [ -z "$out" ]; then set -- --report "$folder.json" "$@"; fi
exec "$VENV_PY" -m cldm.convert anydoor "$@"
