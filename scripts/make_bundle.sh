#!/usr/bin/env bash
# Packs a build so that it runs on a machine with a GPU and CUDA but without MPI, HDF5 or a package registry.
#
#   scripts/make_bundle.sh build/cuda bundle.tar.gz
#
# There: tar xzf bundle.tar.gz && bundle/run roundhouse run configs/demo.yaml       one rank; works without a GPU too
#        bundle/run --tests                                                         the kernels' contract tests
#        bundle/run block_bench --like llama-2-70b --samples 512 --length 2048
#
# It holds the programs, the kernels' and transports' tests, the benchmarks, the bundled model and every shared library that
# is neither the C library's (that machine's must be as new as this one's) nor CUDA's (found there under /usr/local/cuda,
# $CUDA_HOME or the loader's path).
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:?usage: scripts/make_bundle.sh BUILD_FOLDER OUT.tar.gz}
out=${2:?usage: scripts/make_bundle.sh BUILD_FOLDER OUT.tar.gz}
[ -x "$build/bin/roundhouse" ] || { echo "$build/bin/roundhouse is not there: build it first (make cuda)" >&2; exit 1; }

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
bundle=$stage/bundle
mkdir -p "$bundle/bin" "$bundle/lib"
for program in "$build"/bin/{roundhouse,*_bench,kernels_*_test,comm_device_transport_test}; do
  case $program in *emulated*) continue ;; esac
  if [ -x "$program" ]; then cp "$program" "$bundle/bin/"; fi
done
strip "$bundle"/bin/*

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

mkdir -p "$bundle/tests/data"
cp -r tests/data/tiny-world "$bundle/tests/data/"
cp -r configs "$bundle/"
cat > "$bundle/run" <<'RUN'
#!/usr/bin/env bash
# bundle/run PROGRAM ARGUMENTS...    or    bundle/run --tests
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cuda=${CUDA_HOME:-/usr/local/cuda}
export LD_LIBRARY_PATH="$here/lib:$cuda/lib64:$cuda/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
cd "$here"
if [ "${1:-}" = --tests ]; then
  failed=0
  for test in bin/*_test; do "$test" --gtest_brief=1 || failed=1; done
  exit $failed
fi
program=${1:?usage: run PROGRAM ARGUMENTS, or run --tests}
shift
exec "bin/$program" "$@"
RUN
chmod +x "$bundle/run"
tar -C "$stage" -czf "$out" bundle
echo "$out: $(du -h "$out" | cut -f1), $(ls "$bundle/bin" | wc -l) programs, $(ls "$bundle/lib" | wc -l) libraries"
