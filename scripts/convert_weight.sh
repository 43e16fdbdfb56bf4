#!/bin/sh
# Makes the folder that training starts from out of Stable Diffusion 2.1 base (512 pixels, one file) and DINOv2.
#   sh scripts/convert_weight.sh                                   models/released -> models/bifrost_start
#   sh scripts/convert_weight.sh bifrost [--source FILE]           a released Bifrost checkpoint -> models/bifrost
#   sh scripts/convert_weight.sh --source FILE --dinov2 FILE --out FOLDER [more options of cldm.convert]
set -eu
. "$(dirname -- "$0")/setup.sh"
released=${BIFROST_MODELS:-models}/released
verb=sd21
case ${1:-} in
sd21 | bifrost | anydoor)
    verb=$1
    shift
    ;;
esac

if given help "$@"; then exec "$VENV_PY" -m cldm.convert "$verb" --help; fi

# first NAME FOLDER: the first weight file of a folder, or how to get it.
first() {
    for file in "$2"/*.safetensors "$2"/*.ckpt "$2"/*.pth "$2"/*.pt; do
        if [ -f "$file" ]; then
            printf '%s\n' "$file"
            return
        fi
    done
    echo "[convert] error: no weight file in $2; this gets it:" >&2
    echo "    $VENV_PY -m ldm.registry pull $1" >&2
    return 2
}
folder=models/bifrost_start
[ "$verb" = bifrost ] && folder=models/bifrost
given report "$@" || given out "$@" || set -- --report "$folder.json" "$@"
given out "$@" || set -- --out "$folder" "$@"
if ! given source "$@"; then
    found=$(first "$verb-checkpoint" "$released/$verb")
    set -- --source "$found" "$@"
fi
if [ "$verb" = sd21 ] && ! given dinov2 "$@"; then
    found=$(first dinov2-checkpoint "$released/dinov2")
    set -- --dinov2 "$found" "$@"
fi
exec "$VENV_PY" -m cldm.convert "$verb" "$@"
