#!/bin/sh
# Trains the compositor: renders the scenes, trains the first stage, then the compositor. Steps that are done are
# skipped; an interrupted one continues when the same command is run again.
#   sh scripts/train.sh                                            configs/tiny/compositor.yaml
#   sh scripts/train.sh trainer.max_steps=200 out=runs/short       the same with other settings
#   sh scripts/train.sh configs/bifrost.yaml pretrained=models/bifrost_start
set -eu
. "$(dirname -- "$0")/setup.sh"
config=configs/tiny/compositor.yaml
case ${1:-} in
*.yaml)
    config=$1
    shift
    ;;
esac
if [ ! -e "$config" ] && [ ! -e "$AT$config" ]; then
    echo "[train] error: $config does not exist; this lists the settings there are:" >&2
    echo "    ls configs configs/*/*.yaml" >&2
    exit 2
fi

# Folder, count, last shard, further options. One shard holds 256 scenes, so the last one of 512 is 1.
scenes() {
    folder=data/scenes/$1 count=$2 last=$3
    shift 3
    if [ -e "$folder/$last" ]; then
        echo "[train] $folder is there"
    else
        "$VENV_PY" -m datasets.scenes render --out "$folder" --count "$count" \
            --window object --size 96,96 --reference-size 96,96 "$@"
    fi
}

# Only the small configuration starts from nothing; others name what they start from.
case $config in
configs/tiny/compositor.yaml)
    scenes train 24576 shard-00095.safetensors
    scenes train_wide 12288 shard-00047.safetensors --world wide
    scenes eval 512 shard-00001.safetensors --split eval
    if [ -e runs/tiny/first_stage/config.json ]; then
        echo "[train] runs/tiny/first_stage is there"
    else
        "$VENV_PY" -m tiny.compositor.autoencoder configs/tiny/autoencoder.yaml
    fi
    ;;
esac
exec "$VENV_PY" "${AT}run_train_bifrost.py" "$config" "$@"
