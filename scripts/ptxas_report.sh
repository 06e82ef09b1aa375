#!/usr/bin/env bash
# Registers and spills of every CUDA kernel, as nvcc's assembler reports them; needs no GPU. Fails if a kernel spills.
#   scripts/ptxas_report.sh [sm_90 ...]      for these architectures (sm_80 and sm_90 if none is named)
set -euo pipefail
cd "$(dirname "$0")/.."

architectures=("$@")
[[ ${#architectures[@]} -gt 0 ]] || architectures=(sm_80 sm_90)
status=0
for architecture in "${architectures[@]}"; do
  printf '%s\n| kernel | registers | spilled bytes |\n|---|---|---|\n' "$architecture"
  for source in kernels/cuda/*.cu; do
    case $source in  # as in kernels/CMakeLists.txt
      */*attention*.cu | */cholesky.cu | */cross_entropy.cu | */gradients.cu | */quantized_product.cu | */transformer.cu) fuse=true ;;
      *) fuse=false ;;
    esac
    nvcc -std=c++20 -arch="$architecture" -I. --fmad="$fuse" -Xptxas -v -c "$source" -o /dev/null 2>&1 | c++filt
  done | awk '
    /Compiling entry function/ {
      split($0, quoted, "\x27"); name = quoted[2]
      gsub(/roundhouse::|\(anonymous namespace\)::|std::|^void /, "", name)
      sub(/\([^()]*\)$/, "", name)
    }
    /bytes spill stores/ { match($0, /[0-9]+ bytes spill stores/); spills = substr($0, RSTART) + 0 }
    /Used [0-9]+ registers/ {
      match($0, /Used [0-9]+/); printf "| `%s` | %d | %d |\n", name, substr($0, RSTART + 5), spills
      if (spills > 0) failed = 1
    }
    END { exit failed }' | LC_ALL=C sort || status=1
done
exit $status
