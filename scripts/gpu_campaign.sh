#!/usr/bin/env bash
# Tests and measures everything on a machine with a GPU in one call of at most nine minutes, most valuable first.
#
#   scripts/gpu_campaign.sh              leaves results.json, table.txt, log.txt and more in $OUT: docs/gpu.md, "Measuring a machine"
#   scripts/gpu_campaign.sh --baseline   makes scripts/gpu_campaign/cpu_baseline.json, what a GPU's perplexities are compared with
#
# Programs come from the first of these that is there:
#   PROGRAMS          a folder with them, as they are
#   BUNDLE            what scripts/make_bundle.sh made (default .gpu/bundle.tar.xz); needs Python 3 and CUDA's libraries
#   BUILD             a build folder (default build/cuda, for a CPU build), configured and built here if need be; the nine minutes
#                     begin after that
# CAMPAIGN_DEVICE     cuda (default) or cpu, to try the campaign itself
# CAMPAIGN_SIZE       full (default on cuda: blocks of Llama-2-70B), small (default on cpu), smoke (seconds, compares nothing)
# CAMPAIGN_STEPS      only these, e.g. "card start gptq"
# CAMPAIGN_SECONDS    all together (default 530)
# PYTHON              the one that has PyTorch, for the card's own rates (default python3)
# OUT                 default runs/gpu-campaign
# WORK                parent of the scratch folder (default /dev/shm where 20 GB are free, else /tmp)
set -euo pipefail
export LC_ALL=C
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source_folder=$(dirname "$here")
baseline=${1:-}
case $baseline in
  '') ;;
  --baseline) CAMPAIGN_DEVICE=cpu CAMPAIGN_SIZE=full ;;
  *) echo "usage: $0 [--baseline]" >&2; exit 2 ;;
esac
export CAMPAIGN_DEVICE=${CAMPAIGN_DEVICE:-cuda} CAMPAIGN_SECONDS=${CAMPAIGN_SECONDS:-530} CAMPAIGN_STEPS=${CAMPAIGN_STEPS:-}
if [ "$CAMPAIGN_DEVICE" = cuda ]; then size=full; else size=small; fi
export CAMPAIGN_SIZE=${CAMPAIGN_SIZE:-$size}
OUT=$(mkdir -p "${OUT:-$source_folder/runs/gpu-campaign}" && cd "${OUT:-$source_folder/runs/gpu-campaign}" && pwd)
export OUT

if [ -n "${BUNDLE:-}" ] && [ ! -e "$BUNDLE" ]; then echo "BUNDLE=$BUNDLE is not there" >&2; exit 1; fi
bundle_file=${BUNDLE:-$source_folder/.gpu/bundle.tar.xz}
# A build that is asked for, and a baseline, are not measured by a bundle that lies there from another day.
if [ -z "${PROGRAMS:-}" ] && { [ ! -e "$bundle_file" ] || { [ -z "${BUNDLE:-}" ] && [ -n "${BUILD:-}$baseline" ]; }; }; then
  build=${BUILD:-$source_folder/build}
  options=(-DROUNDHOUSE_CUDA=OFF)
  if [ "$CAMPAIGN_DEVICE" = cuda ]; then
    build=${BUILD:-$source_folder/build/cuda}
    nvcc=$(command -v nvcc || echo "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc")
    options=("-DCMAKE_CUDA_COMPILER=$nvcc" -DCMAKE_CUDA_ARCHITECTURES=native)
  fi
  build=$(realpath -m "$build")
  if [ ! -e "$build/CMakeCache.txt" ]; then
    "$here/install_dependencies.sh"
    (cd "$source_folder" && cmake --preset "$CAMPAIGN_DEVICE" -B "$build" --compile-no-warning-as-error "${options[@]}") > "$OUT/build.txt" 2>&1 ||
      { tail -n 20 "$OUT/build.txt" >&2; exit 1; }
  fi
  cmake --build "$build" --parallel "$(nproc)" --target campaign_programs > "$OUT/build.txt" 2>&1 ||
    { tail -n 20 "$OUT/build.txt" >&2; exit 1; }
  rm -f "$OUT/build.txt"
  PROGRAMS=$build/bin
fi

CAMPAIGN_STARTED=$(date +%s)
export CAMPAIGN_STARTED
# Models and records in memory where there is room: disks there may be slow, and not what is measured.
room=$(df --output=avail -BG /dev/shm 2>/dev/null | tail -n 1 | tr -dc 0-9 || true)
if [ "${room:-0}" -ge 20 ]; then parent=/dev/shm; else parent=/tmp; fi
CAMPAIGN_WORK=$(mktemp -d "${WORK:-$parent}/gpu-campaign.XXXXXX")
export CAMPAIGN_WORK
campaign=
trap 'rm -rf "$CAMPAIGN_WORK"' EXIT
trap 'if [ -n "$campaign" ]; then kill "$campaign" 2>/dev/null; wait "$campaign"; fi; exit 143' TERM INT

export ROUNDHOUSE_SOURCE_DIR=$source_folder
if [ -z "${PROGRAMS:-}" ]; then
  # Python's, as the image may lack xz.
  "${PYTHON:-python3}" -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$bundle_file" "$CAMPAIGN_WORK"
  . "$CAMPAIGN_WORK/bundle/environment.sh"
  PROGRAMS=$CAMPAIGN_WORK/bundle/bin
fi
PROGRAMS=$(cd "$PROGRAMS" && pwd)
export PROGRAMS
# In the background, so that this shell hears a signal at once.
"${PYTHON:-python3}" -B "$here/gpu_campaign/campaign.py" $baseline &
campaign=$!
status=0
wait "$campaign" || status=$?
exit $status
