#!/bin/sh
# Composes the documented example (the box is given, the depth is found), or images of your own.
#   sh scripts/inference.sh [more options of `run_inference.py image`]
#   sh scripts/inference.sh --instruction "Place the pyramid to the left of the striped orange prism"
#   sh scripts/inference.sh --background room.png --object dog.png --box 0.4,0.5,0.7,0.9 --out out.png
# As soon as --background or --config is given, nothing of the example is used.
set -eu
. "$(dirname -- "$0")/setup.sh"
example=assets/examples/pyramid

missing() {
    echo "[inference] error: $1 is missing; this gets it:" >&2
    shift
    printf '    %s\n' "$@" >&2
    exit 2
}
if given help "$@"; then exec "$VENV_PY" "${AT}run_inference.py" image --help; fi
small=assets/tiny/compositor
if ! given model "$@" && [ ! -e models/bifrost/compositor.json ] && [ ! -e "$AT$small/compositor.json" ]; then
    missing "$small" "git checkout -- assets/tiny" \
        "or train one: sh scripts/train.sh && sh scripts/inference.sh --model runs/tiny/bifrost/model"
fi
if ! given background "$@" && ! given config "$@"; then
    [ -e "$AT$example/room.png" ] || missing "$example" ".venv/bin/python -m scripts.docs.make_examples"
    place="--box 0.28,0.01,0.68,0.64"
    if given instruction "$@"; then place="--anchors $example/anchors.json"; fi
    # shellcheck disable=SC2086  # two words
    set -- --background "$example/room.png" --object "$example/object.png" \
        --background-depth "$example/room_depth.png" $place --out outputs/inference/composite.png "$@"
fi
exec "$VENV_PY" "${AT}run_inference.py" image "$@"
