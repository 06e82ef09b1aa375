#!/bin/bash
# Submits a batch script several times, each job to start when the one before it has not ended with 0 (so also when that was
# cancelled): for clusters that do not requeue jobs. The rest of a chain goes when one of its jobs is done. Needs bash 4.4. From the
# root of the checkout:
#
#   MODEL=/models/Llama-2-70b-hf CALIBRATION=/data/c4.jsonl WIKITEXT=/data/wiki.test.raw \
#     slurm/chain.sh 5 --time=4:00:00 slurm/quantize_70b.sh

# shellcheck source=/dev/null
if [[ -e slurm/site.sh ]]; then source slurm/site.sh; fi
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 JOBS [OPTIONS OF SBATCH] SCRIPT" >&2
  exit 2
fi
jobs=$1
shift
all=() after=()
for ((i = 1; i <= jobs; ++i)); do
  job=$(sbatch --parsable --no-requeue --kill-on-invalid-dep=yes "${after[@]}" "$@")
  job=${job%%;*}  # a cluster's name may follow
  echo "job $job${after[*]:+, ${after[*]}}"
  after=("--dependency=afternotok:$job")
  all+=("$job")
done
echo "to end them all: scancel ${all[*]}"
