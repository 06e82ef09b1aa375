#!/usr/bin/env bash
# Installs what Roundhouse is built with, from the distribution (Debian 12, Ubuntu 24.04 or later), and nothing that is there already.
#   scripts/install_dependencies.sh           to build and run
#   scripts/install_dependencies.sh --tests   and to test: NumPy, and as root a one-machine Slurm
#   scripts/install_dependencies.sh --fuzz    and to fuzz: Clang with libFuzzer
#   scripts/install_dependencies.sh --lint    and to check sources: clang-format and clang-tidy, of the one version that everybody uses
#   scripts/install_dependencies.sh --which-clang     installs nothing: the Clang that fuzzes
# CUDA and NCCL are the cluster's own: they are never installed here.
set -euo pipefail

packages=(
  g++ cmake ninja-build make ccache pkg-config git
  libopenmpi-dev openmpi-bin libhdf5-dev libdnnl-dev
  libyaml-cpp-dev libcli11-dev libfmt-dev nlohmann-json3-dev libkainjow-mustache-dev
  libsentencepiece-dev libutf8proc-dev libpcre2-dev libxxhash-dev libssl-dev zlib1g-dev libzstd-dev libgtest-dev libgmock-dev python3
)
wanted=()  # a test that lacks one of these is skipped and says so

# Clang with libFuzzer, 16 or later: the newest that is there.
clang_with_libfuzzer() {
  local version
  for version in 21 20 19 18 17 16; do
    if command -v clang++-$version >/dev/null && compgen -G "/usr/lib/llvm-$version/lib/clang/*/lib/linux/libclang_rt.fuzzer-*.a" >/dev/null; then
      echo clang++-$version
      return
    fi
  done
  return 1
}

case "${1-}" in
  '') ;;
  --which-clang)
    clang_with_libfuzzer
    exit
    ;;
  --fuzz)
    if ! clang_with_libfuzzer >/dev/null; then
      clang=16  # Debian 12 and Ubuntu 24.04 have it; later ones have a later one
      for version in 19 18; do
        if [[ $(apt-cache policy clang-$version 2>/dev/null) == *Candidate:\ [0-9]* ]]; then
          clang=$version
          break
        fi
      done
      packages+=("clang-$clang" "libclang-rt-$clang-dev" "libomp-$clang-dev")
    fi
    ;;
  --lint)
    packages+=(clang-format-14 clang-tidy-14)
    ;;
  --tests)
    wanted+=(python3-numpy)
    # The Slurm test starts its daemons as root; on a machine that belongs to a cluster its own Slurm is used.
    if [[ $(id -u) == 0 ]] && ! command -v slurmctld >/dev/null; then
      wanted+=(munge slurmctld)
    fi
    if [[ $(id -u) == 0 ]] && ! command -v slurmd >/dev/null; then
      wanted+=(slurmd slurm-client libpmix-dev)
    fi
    ;;
  *)
    echo "usage: $0 [--tests | --lint | --fuzz | --which-clang]" >&2
    exit 2
    ;;
esac

if ! command -v dpkg-query >/dev/null; then
  echo "$0: this system has no dpkg; please install by its own means what Debian calls: ${packages[*]}" >&2
  exit 1
fi

# Those of the arguments that are not installed, one a line.
missing_of() {
  local installed
  # It fails if it does not know one of them, which is what is asked here.
  installed=$({ dpkg-query -W -f='${db:Status-Status} ${Package}\n' "$@" 2>/dev/null || true; } | sed -n 's/^installed //p')
  for package in "$@"; do
    grep -qxF "$package" <<<"$installed" || echo "$package"
  done
}

# Those of the arguments that apt could install, one a line.
available_of() {
  local known
  known=$(apt-cache policy "$@" 2>/dev/null | awk '/^[^ ]/ {name = $1; sub(":$", "", name)} $1 == "Candidate:" && $2 != "(none)" {print name}')
  for package in "$@"; do
    if grep -qxF "$package" <<<"$known"; then echo "$package"; fi
  done
}

mapfile -t missing < <(missing_of "${packages[@]}" ${wanted[@]+"${wanted[@]}"})
if [[ ${#missing[@]} == 0 ]]; then
  exit 0
fi

as_root=()
if [[ $(id -u) != 0 ]]; then
  # sudo -n where nobody can type a password: fail at once, not wait.
  if command -v sudo >/dev/null && { [[ -t 0 ]] || sudo -n true 2>/dev/null; }; then
    as_root=(sudo)
  else
    echo "$0: not root, and no sudo to become it. Please have these packages installed:" >&2
    echo "  apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
fi
apt=(${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)

mapfile -t available < <(available_of "${missing[@]}")
if [[ ${#available[@]} != "${#missing[@]}" ]]; then
  # A fresh container has empty package lists.
  "${apt[@]}" update
  mapfile -t available < <(available_of "${missing[@]}")
fi

absent=()
for package in "${missing[@]}"; do
  [[ " ${available[*]-} " == *" $package "* ]] && continue
  if [[ " ${packages[*]} " == *" $package "* ]]; then
    absent+=("$package")
  else
    echo "$0: this distribution has no package $package; the tests that need it will be skipped" >&2
  fi
done
if [[ ${#absent[@]} != 0 ]]; then
  echo "$0: this distribution has no package ${absent[*]} (Debian 12 and Ubuntu 24.04 have, there in 'universe')" >&2
  exit 1
fi
if [[ ${#available[@]} == 0 ]]; then
  exit 0
fi

echo "installing ${available[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() {
  "${apt[@]}" install --yes --no-install-recommends "${available[@]}" >"$log" 2>&1
}
# Old package lists name files that the mirror no longer has.
if ! install && ! { "${apt[@]}" update && install; }; then
  cat "$log" >&2
  echo "$0: apt-get could not install ${available[*]}" >&2
  exit 1
fi
