#!/bin/sh
# Trains a locator: LoRA on LLaVA-1.5, or on any other vision-language model. Run again to continue.
#   sh scripts/train_llava.sh                                        configs/llava_bifrost/train.yaml
#   sh scripts/train_llava.sh fit.batch=4 out=runs/short             the same with other settings
#   PROCESSES=4 sh scripts/train_llava.sh                            on four GPUs, through accelerate
#   sh scripts/train_llava.sh configs/llava_bifrost/train_smoke.yaml a minute on a CPU, on rendered scenes
set -eu
. "$(dirname -- "$0")/setup.sh"
config=configs/llava_bifrost/train.yaml
case ${1:-} in
*.yaml)
    config=$1
    shift
    ;;
esac
need() {
    if [ ! -e "$1" ] && [ ! -e "$AT$1" ]; then
        echo "[train_llava] error: $1 does not exist; this gets it:" >&2
        shift
        for line; do echo "    $line" >&2; done
        exit 2
    fi
}
need "$config" "ls configs/llava_bifrost"

# Where the configuration finds its model and its data, unless an argument says otherwise.
model= data=
for argument; do
    case $argument in
    model=*) model=${argument#model=} ;;
    data=*) data=${argument#data=} ;;
    esac
done
case $config in
configs/llava_bifrost/train.yaml)
    need "${model:-models/llava-1.5-7b-hf}/config.json" "python -m ldm.registry pull llava-1.5-7b"
    need "${data:-data/locator/coco_train/dataset.json}" \
        "python -m llava_bifrost.build_dataset coco --config configs/llava_bifrost/build_coco.yaml"
    ;;
configs/llava_bifrost/train_smoke.yaml)
    need "${model:-assets/tiny/locator}/config.json" "git checkout -- assets/tiny"
    if [ -z "$data" ] && [ ! -e data/locator/smoke/dataset.json ]; then
        "$VENV_PY" -m datasets.scenes render --out data/scenes/locator_smoke --count 24
        "$VENV_PY" -m llava_bifrost.build_dataset scenes --scenes data/scenes/locator_smoke --out data/locator/smoke
    fi
    ;;
esac
if [ "${PROCESSES:-1}" -gt 1 ]; then
    exec "$VENV_PY" -m accelerate.commands.launch --quiet --num_processes "$PROCESSES" \
        -m llava_bifrost.train "$config" "$@"
fi
exec "$VENV_PY" -m llava_bifrost.train "$config" "$@"
