#!/usr/bin/env bash
# Packs a build so that it runs on a machine with a GPU and CUDA but without MPI, HDF5 or a package registry.
#
#   scripts/make_bundle.sh [BUILD_FOLDER [OUT.tar.xz]]                 (build/cuda, .gpu/bundle.tar.xz)
#
# There, beside the source tree:
#        tar xf .gpu/bundle.tar.xz -C /tmp && /tmp/bundle/run roundhouse run configs/demo.yaml       one rank; works without a GPU too
#        /tmp/bundle/run --tests                                                                     the kernels' contract tests
#        scripts/gpu_campaign.sh                                                                     everything; unpacks it itself
#
# It holds the programs, the kernels' and transports' tests with their golden files, the benchmarks and every shared library
# that is neither the C library's (that machine's must be as new as this one's) nor CUDA's (found there: scripts/bundle/environment.sh).
# The bundled model and the configurations are the source tree's. A build for one architecture is smaller:
#   cmake --preset cuda -DCMAKE_CUDA_ARCHITECTURES=90-real
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build/cuda}
out=${2:-.gpu/bundle.tar.xz}
[ -x "$build/bin/roundhouse" ] || { echo "$build/bin/roundhouse is not there: build it first (make cuda)" >&2; exit 1; }

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
bundle=$stage/bundle
mkdir -p "$bundle/bin" "$bundle/lib"
for program in "$build"/bin/{roundhouse,*_bench,kernels_*_test,comm_device_device_transport_test}; do
  case $program in *emulated*) continue ;; esac
  if [ -x "$program" ]; then cp "$program" "$bundle/bin/"; fi
done

# The C library's own, the driver's, and CUDA's.
left_out='^(linux-vdso|ld-linux|libc\.|libm\.|libdl\.|libpthread\.|librt\.|libresolv\.|libcuda\.|libnvidia|libcudart|libcublas|libcusolver|libcusparse|libnvJitLink|libnccl)'
missing=0
while read -r name path; do
  [[ $name =~ $left_out ]] && continue
  if [ "$path" = not ]; then
    echo "$name: needed and not found here" >&2
    missing=1
  else
    cp -L "$path" "$bundle/lib/$name"
  fi
done < <(ldd "$bundle"/bin/* | sed -n 's/^\s*\(\S*\) => \(\S*\).*/\1 \2/p' | sort -u)
[ "$missing" = 0 ] || exit 1
strip "$bundle"/bin/*

mkdir -p "$bundle/tests/golden"
cp tests/golden/{gradients,kmeans}.json "$bundle/tests/golden/"
cp scripts/bundle/{run,environment.sh} "$bundle/"
mkdir -p "$(dirname "$out")"
# All programs hold the same kernels: found again where the dictionary reaches from one to the next.
tar -C "$stage" -c bundle | xz --lzma2=preset=1,dict=128MiB > "$out"
echo "$out: $(du -h --apparent-size "$out" | cut -f1), $(ls "$bundle/bin" | wc -l) programs, $(ls "$bundle/lib" | wc -l) libraries"
