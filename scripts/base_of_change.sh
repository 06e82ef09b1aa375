#!/usr/bin/env bash
# Prints the commit that the checked-out change starts from: where it left main or, on main itself, the commit before. Uncommitted files
# belong to the change.
set -euo pipefail
for main in origin/main main; do
  if base=$(git merge-base HEAD "$main" 2>/dev/null) && [[ $base != "$(git rev-parse HEAD)" ]]; then
    echo "$base"
    exit
  fi
done
git rev-parse --verify --quiet HEAD~1 || git rev-parse HEAD
