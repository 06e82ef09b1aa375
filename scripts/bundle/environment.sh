# To be sourced: where the programs of this bundle find their libraries and their golden files. Does not touch what other
# programs load: BUNDLE_LIBRARIES is LD_LIBRARY_PATH for those in bin/ alone.

bundle=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Those of the toolkit, then those of the wheels (nvidia/*/lib) of the first Python that has PyTorch, or of any that has some.
cuda_library_folders() {
  local folder python wheels=
  for folder in "${CUDA_HOME:-/usr/local/cuda}"/{lib64,lib} /usr/local/nvidia/lib64; do
    if [ -d "$folder" ]; then echo "$folder"; fi
  done
  for python in ${PYTHON:+"$PYTHON"} python3 python /opt/conda/bin/python /usr/bin/python3; do
    local found status=0
    found=$("$python" - 2>/dev/null <<'PY'
import glob, importlib.util, os, sys
for root in sys.path:
    for folder in sorted(glob.glob(os.path.join(glob.escape(root), "nvidia", "*", "lib"))):
        print(folder)
sys.exit(importlib.util.find_spec("torch") is None)
PY
    ) || status=$?
    if [ "$status" = 0 ]; then wheels=$found; break; fi
    wheels=${wheels:-$found}
  done
  if [ -n "$wheels" ]; then echo "$wheels"; fi
}
BUNDLE_LIBRARIES=$bundle/lib:$(cuda_library_folders | paste -sd:)
export BUNDLE_LIBRARIES

# The tree that was carried along, else the golden files in the bundle, which are all that the tests here read.
if [ -z "${ROUNDHOUSE_SOURCE_DIR:-}" ]; then
  if [ -d tests/golden ]; then ROUNDHOUSE_SOURCE_DIR=$PWD; else ROUNDHOUSE_SOURCE_DIR=$bundle; fi
fi
export ROUNDHOUSE_SOURCE_DIR
