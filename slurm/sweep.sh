#!/bin/bash
# A sweep as a job array: each recipe is a run of its own, RUN/NUMBER, in a job of its own, as many side by side as there are nodes
# for. RECIPES names a file with one recipe a line, as in a config, without comments or blank lines:
#
#   {method: gptq, bits: 4, group_size: 128}
#   {method: awq, bits: 3, group_size: 128}
#
#   RECIPES=recipes.txt MODEL=/models/Mistral-7B-v0.1 CONFIG=my.yaml RUN=runs/sweep \
#     sbatch --array=1-$(grep -c . recipes.txt) --nodes=1 slurm/sweep.sh
#   build/bin/roundhouse report runs/sweep/*
#
# Each job measures the unquantized model again, unless CONFIG has `evaluate: {original: false}`.
#
# One job for all recipes (quantize_70b.sh) shares the reading of the model and the pipeline between them; an array needs no large
# allocation at once, and a recipe that fails stops no other.

#SBATCH --job-name=roundhouse-sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
#SBATCH --signal=B:USR1@300

: "${ROUNDHOUSE_ROOT:=$SLURM_SUBMIT_DIR}"
: "${RECIPES:?a file with one recipe a line}"
: "${SLURM_ARRAY_TASK_ID:?submit it with --array=1-N}"

cd "$ROUNDHOUSE_ROOT" || exit 2
RECIPE=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$RECIPES")
RUN=${RUN:-runs/sweep}/$SLURM_ARRAY_TASK_ID
if [[ ! $RECIPE ]]; then
  echo "$RECIPES has no line $SLURM_ARRAY_TASK_ID"
  exit 2
fi
# shellcheck source=slurm/quantize_70b.sh
source slurm/quantize_70b.sh
