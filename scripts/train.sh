#!/bin/sh
# Trains the compositor: renders the scenes, trains the first stage, then the compositor. Steps that are done are
# skipped; an interrupted one continues when the same command is run again.
#   sh scripts/train.sh                                            configs/tiny/bifrost.yaml
#   sh scripts/train.sh trainer.max_steps=200 out=runs/short       the same with other settings
#   sh scripts/train.sh configs/bifrost.yaml pretrained=models/bifrost_start
set -eu
. "$(dirname -- "$0")/setup.sh"
config=configs/tiny/bifrost.yaml
case ${1:-} in
*.yaml)
    config=$1
    shift
    ;;
esac
if [ ! -e "$config" ]; then
    echo "[train] error: $config does not exist; this lists the settings there are:" >&2
    echo "    ls configs configs/*/*.yaml" >&2
    exit 2
fi

# One shard holds 256 scenes, so the last one of 24576 is 95, and of 512 it is 1.
scenes() {
    if [ -e "data/scenes/$1/$3" ]; then
        echo "[train] data/scenes/$1 is there"
    else
        "$VENV_PY" -m datasets.scenes render --out "data/scenes/$1" --split "$1" --count "$2" \
            --window object --size 96,96 --reference-size 96,96
    fi
}

# Only the small configuration starts from nothing; others name what they start from.
case $config in
configs/tiny/bifrost.yaml)
    scenes train 24576 shard-00095.safetensors
    scenes eval 512 shard-00001.safetensors
    if [ -e runs/tiny/first_stage/config.json ]; then
        echo "[train] runs/tiny/first_stage is there"
    else
        "$VENV_PY" -m cldm.first_stage configs/tiny/first_stage.yaml
    fi
    ;;
esac
exec "$VENV_PY" run_train_bifrost.py "$config" "$@"
