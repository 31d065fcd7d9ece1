#!/bin/bash
# Submit both phases and the evaluation as three Slurm jobs: each begins when the one before has ended without an error.
# Usage: bash submit.sh RECIPE [key=value ...]    NODES and GPUS (of a node) are 4 and 8 unless set.
# A phase that reaches its time limit saves and requeues itself under its job number, so the chain waits for it.
set -eu
recipe=${1:?give a recipe}
shift
nodes=${NODES:-4}
gpus=${GPUS:-8}
name=$(basename "$recipe" .yaml)

metaxlm launch --slurm_script > slurm.sbatch
submit() { # PHASE [option of sbatch]: prints the job's number
    phase=$1
    shift
    PHASES=$phase sbatch --parsable --job-name="$name-$phase" --nodes="$nodes" --ntasks-per-node="$gpus" \
        --gpus-per-node="$gpus" "$@" | cut -d ';' -f 1
}

meta=$(submit meta slurm.sbatch --recipe "$recipe" --run_dir "runs/$name" "$@")
cross=$(submit cross --dependency="afterok:$meta" --kill-on-invalid-dep=yes slurm.sbatch --recipe "$recipe" \
    --run_dir "runs/$name" "$@")
sbatch --job-name="$name-evaluate" --ntasks=1 --gpus=1 --dependency="afterok:$cross" --kill-on-invalid-dep=yes \
    --wrap "env -u SLURM_PROCID metaxlm evaluate --run_dir runs/$name --phase cross"
