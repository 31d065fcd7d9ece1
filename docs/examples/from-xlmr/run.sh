#!/bin/bash
# Continue from XLM-R base: import, train on all GPUs of this machine, evaluate, export.
# Usage: bash run.sh FOLDER    FOLDER: what `hf download FacebookAI/xlm-roberta-base --local-dir FOLDER` wrote.
# Every step that is done is left out when the script runs again.
set -eu
model=${1:?give the folder of xlm-roberta-base}
recipe=$(dirname "$0")/recipe.yaml
gpus=${GPUS:-8}

[ -e models/xlmr ] || metaxlm convert import --input "$model" --output models/xlmr
metaxlm prepare --recipe "$recipe"
torchrun --nproc_per_node "$gpus" -m dist_metaxlm.cli.pretrain --phase cross --recipe "$recipe" --init_from models/xlmr
metaxlm evaluate --run_dir runs/from-xlmr --phase cross
[ -e exported/from-xlmr ] || metaxlm convert export --run_dir runs/from-xlmr --phase cross@best --output exported/from-xlmr
