#!/bin/bash
# mpirun, of which SIGTERM or Ctrl-C make a clean stop (exit code 75): mpirun itself, told to end, kills its processes a second later
# and ends with 1. SIGUSR1 it passes on, and that means the same to the program.
#
#   scripts/mpirun.sh -n 8 --bind-to none build/bin/roundhouse run my.yaml
set -uom pipefail  # m: a process group of its own, so that Ctrl-C on a terminal reaches this script alone

# Again and again: mpirun that just starts does not pass on signals yet. A second Ctrl-C ends it at once.
asked=''
# shellcheck disable=SC2317  # by the traps
ask_to_stop() {
  if [[ $1 == INT && $asked ]]; then kill -TERM "$job"; fi
  asked=yes
  (while kill -USR1 "$job"; do sleep 5; done) >/dev/null 2>&1 &
}
trap 'ask_to_stop TERM' TERM USR1
trap 'ask_to_stop INT' INT

mpirun "$@" </dev/null &
job=$!
# A trapped signal ends `wait` early, with a status above 128, while the job goes on.
while :; do
  status=0
  wait "$job" || status=$?
  kill -0 "$job" 2>/dev/null || break
done
# It did not listen yet, so nothing was begun.
if [[ $asked && $status == 138 ]]; then status=75; fi
exit "$status"
