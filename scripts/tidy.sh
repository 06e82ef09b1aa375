#!/usr/bin/env bash
# clang-tidy, warnings are errors: scripts/tidy.sh BUILD JOBS [BASE]
# All sources that BUILD compiles; with BASE those that differ from that commit, whichever these are, at most MOST_FILES (40).
set -euo pipefail
build=$1 jobs=$2 base=${3-}
: "${MOST_FILES:=40}"
tidy=$(command -v clang-tidy-14 || command -v clang-tidy)

# The compiler's own omp.h and nothing else of its headers.
mkdir -p "$build/omp"
ln -sf "$(g++ -print-file-name=include)/omp.h" "$build/omp/omp.h"

# What is compiled here: sources that only another configuration compiles have no command line.
mapfile -t known < <(sed -n 's/^ *"file": "\(.*\)",\{0,1\}$/\1/p' "$build/compile_commands.json" | sort -u)
declare -A compiled=()
for file in "${known[@]}"; do compiled[$file]=1; done

if [[ $base ]]; then
  mapfile -t candidates < <({ git diff --name-only --diff-filter=d "$base" -- '*.cpp'; git ls-files --others --exclude-standard -- '*.cpp'; } | sort -u)
else
  mapfile -t candidates < <(git ls-files -- '*.cpp')
  MOST_FILES=${#candidates[@]}
fi
files=() left=()
for file in ${candidates[@]+"${candidates[@]}"}; do
  if [[ ${compiled["$PWD/$file"]-} ]]; then files+=("$file"); else left+=("$file"); fi
done
if [[ ${#left[@]} != 0 ]]; then echo "clang-tidy: not compiled in $build, left out: ${left[*]}"; fi
if [[ ${#files[@]} -gt $MOST_FILES ]]; then
  echo "clang-tidy: $MOST_FILES of ${#files[@]} changed files; \`make tidy\` looks at all"
  files=("${files[@]:0:MOST_FILES}")
fi
if [[ ${#files[@]} == 0 ]]; then
  echo "clang-tidy: no source to look at"
  exit
fi
printf '%s\0' "${files[@]}" | xargs -0 -n 1 -P "$jobs" "$tidy" --quiet -p "$build" --warnings-as-errors='*' --extra-arg="-isystem$build/omp" 2> >(grep -v 'warnings generated\|Suppressed\|Use -header-filter' >&2)
echo "clang-tidy: ${#files[@]} files, no warnings"
