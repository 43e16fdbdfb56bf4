#!/bin/sh
# One training on NODES nodes with GPUS GPUs each; start it from the root of the repository on every node.
#   sh scripts/cluster/train.sh compositor|locator|prompts|lora [key=value ...]
# As a task of srun (train.sbatch) it is one process of the training; elsewhere (job.yaml) it starts them by torchrun.
#   NODE_RANK                  number of this node, from 0 (default: the index of a Kubernetes pod, else 0)
#   MASTER_ADDR, MASTER_PORT   where node 0 listens
#   MAX_RESTARTS               how often torchrun starts the processes again after one has died (default 8)
set -eu
name=${1:-} nodes=${NODES:-1} gpus=${GPUS:-1}
[ $# -eq 0 ] || shift
case $name in
compositor)
    set -- run_train_bifrost.py configs/bifrost.yaml "trainer.nodes=$nodes" "trainer.devices=$gpus" \
        trainer.log_every=10 "$@" ;; # a signal waits for the next row of metrics.csv
locator)
    set -- -m llava_bifrost.train configs/llava_bifrost/train.yaml "$@" ;;
prompts)
    set -- -m inpainting.models.image_to_text.fine_tune_llavanext train \
        --config-path=configs/inpainting/image_to_text/train/llava_multimask.yaml "$@" ;;
lora)
    set -- -m inpainting.models.text_to_image.train_text_to_image_lora main \
        --config-path=configs/inpainting/text_to_image/train/sd_2_inp_rca_finetuned.yaml "$@" ;;
*)
    echo "[cluster] error: compositor, locator, prompts or lora, got '$name'" >&2
    exit 2
    ;;
esac
python=${PYTHON:-.venv/bin/python}
# Nodes often have no network: models and data are files, nothing is looked up.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" TRANSFORMERS_OFFLINE="${TRANSFORMERS_OFFLINE:-1}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"

if [ -n "${SLURM_PROCID:-}" ]; then
    export RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE="$SLURM_NTASKS"
    exec "$python" "$@"
fi
rank=${NODE_RANK:-${JOB_COMPLETION_INDEX:-0}} host=false
if [ "$rank" = 0 ]; then host=true; fi
# In one store for all attempts, processes that start again would read the addresses of dead ones (torch 2.13).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec "$python" -m torch.distributed.run --nnodes "$nodes" --nproc-per-node "$gpus" \
    --rdzv-backend c10d --rdzv-id "bifrost-$name" --rdzv-conf "is_host=$host,join_timeout=900" \
    --rdzv-endpoint "${MASTER_ADDR:-localhost}:${MASTER_PORT:-29500}" \
    --max-restarts "${MAX_RESTARTS:-8}" --shutdown-timeout 100 "$@"
