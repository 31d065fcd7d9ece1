#!/bin/bash
# Ten languages from scratch on the GPUs of this machine: prepare, both phases, evaluation, export.
# Usage: bash run.sh    A phase that is finished is left out when the script runs again; GPUS=4 trains on four.
set -eu
recipe=$(dirname "$0")/recipe.yaml
gpus=${GPUS:-8}

metaxlm prepare --recipe "$recipe"
for phase in meta cross; do
    torchrun --nproc_per_node "$gpus" -m dist_metaxlm.cli.pretrain --phase "$phase" --recipe "$recipe"
done
metaxlm evaluate --run_dir runs/ten-languages --phase cross
[ -e exported/ten-languages ] || metaxlm convert export --run_dir runs/ten-languages --phase cross --output exported/ten-languages
