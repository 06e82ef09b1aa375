# shellcheck shell=bash
# Sourced by the batch scripts. `supervise RUN COMMAND...` starts COMMAND (an srun) as a job step and acts on its end:
#
# What counts is what the program says of its end in RUN/journal.jsonl; an srun that ends with 0 or 75 without such a word has
# failed. So RUN must be the same path here and for the program (in a container, too), on a file system that both see.
#
#   exit code             what happens
#   0                     done
#   75                    stopped cleanly with work left, as the time limit is near: back into the queue
#   2                     wrong usage or config: final
#   any, after SIGTERM    preempted or cancelled: Slurm itself requeues the one and not the other. But a SIGTERM 30 s or more after
#                         the warning means that time is up and the job over: back into the queue
#   anything else         a crash or a failed launch. First a new step in the same allocation: a node that lost power refuses
#                         a step number it has seen before. If that fails, too, back into the queue, for other nodes. Failures
#                         are listed in RUN/failures.log; the sixth without a block finished between them is final
#   (no end)              the node of this script died: Slurm requeues the job (#SBATCH --requeue)
#
# The script puts the job back MAX_RESTARTS times at most; preemptions and lost nodes count, too.

: "${CONFIRM_SECONDS:=60}"  # a network file system may show what another node wrote as late as that
: "${RETRY_SECONDS:=10}"    # for Slurm to clear a dead step away, or to find out that a node is lost

finished_blocks() {
  { find "$1/recipes" -name 'block-*.h5' 2>/dev/null || true; } | wc -l  # no folder before the first start
}

# Ends this script, too: nothing may come after it.
put_back() {
  local restarts=${SLURM_RESTART_COUNT:-0}
  if [[ $restarts -ge $MAX_RESTARTS ]]; then
    echo "started $((restarts + 1)) times already (MAX_RESTARTS=$MAX_RESTARTS): not trying again"
  else
    scontrol requeue "$SLURM_JOB_ID"
  fi
}

# srun takes SIGTERM as an order to kill every task at once, so both signals go on as SIGUSR1, which the program treats alike.
on_warning() {
  warned=$SECONDS
  kill -USR1 "$step" || true
}

on_terminate() {
  terminated=yes
  kill -USR1 "$step" || true
  if [[ $warned && $((SECONDS - warned)) -ge 30 ]]; then
    echo "out of time before the unit in flight was done"
    put_back
  fi
}

# The exit code that the program wrote down as the last act of this launch; empty if it did not.
word_of_the_program() {
  local line
  ls "$1" >/dev/null 2>&1 || true  # a network file system asks its server again
  line=$({ grep -hsF "\"launch\":\"$ROUNDHOUSE_LAUNCH\"" "$1/journal.jsonl" || true; } | tail -n 1)
  if [[ $line =~ '"exit_code":'([0-9]+) ]]; then echo "${BASH_REMATCH[1]}"; fi
}

# Puts the program's word in place of `status`, srun's: that can be 0 where a task was never started, and 137 where all was done.
settle_status() {
  local said deadline=$((SECONDS + CONFIRM_SECONDS))
  while said=$(word_of_the_program "$1"); [[ ! $said && $status =~ ^(0|75)$ && $SECONDS -lt $deadline && ! $terminated ]]; do
    sleep 1
  done
  if [[ $said ]]; then
    status=$said
  elif [[ $status =~ ^(0|75)$ ]]; then
    echo "the step ended with exit code $status, but $1/journal.jsonl does not say that the program did: taken for a failed launch"
    status=1
  fi
}

# Runs the step in the background, so that signals are seen while it works. Its exit code is in `status`.
run_step() {
  launches=$((launches + 1))
  ROUNDHOUSE_LAUNCH=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}.$launches-$(date +%s.%N)
  export ROUNDHOUSE_LAUNCH
  "$@" &
  step=$!
  trap on_warning USR1
  trap on_terminate TERM
  # A trapped signal ends `wait` early, with a status above 128, while the step goes on.
  while :; do
    status=0
    wait "$step" || status=$?
    kill -0 "$step" 2>/dev/null || break
  done
}

supervise() {
  local run=$1 status step launches=0 warned='' terminated='' blocks failures
  shift
  echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1))," \
    "$(finished_blocks "$run") blocks finished: $*"
  while :; do
    run_step "$@"
    settle_status "$run"
    if [[ $status == 0 ]]; then
      echo "done"
      exit 0
    elif [[ $terminated ]]; then
      echo "stopped with exit code $status after SIGTERM"
      exit "$status"
    elif [[ $status == 75 ]]; then
      echo "stopped cleanly with work left"
      put_back
      exit 75
    elif [[ $status == 2 ]]; then
      echo "not tried again: what is wrong stands above"
      exit 2
    fi

    blocks=$(finished_blocks "$run")
    mkdir -p "$run"
    echo "$(date +%FT%T) job $SLURM_JOB_ID on $SLURM_JOB_NODELIST: exit code $status, $blocks blocks finished" >>"$run/failures.log"
    failures=$(grep -c ", $blocks blocks finished$" "$run/failures.log")
    echo "failed with exit code $status, $blocks blocks finished, failure $failures of 6"
    if [[ $failures -ge 6 ]]; then
      exit "$status"
    elif [[ $warned || $((failures % 2)) == 0 ]]; then  # after the warning there is no time to try again here
      put_back
      exit "$status"
    fi
    sleep "$RETRY_SECONDS"
    if [[ $terminated ]]; then exit "$status"; fi
  done
}
