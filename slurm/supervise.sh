# shellcheck shell=bash
# Sourced by the batch scripts; needs bash 4.4. `supervise RUN COMMAND...` starts COMMAND (srun, or mpirun) as a job step and acts
# on its end, `launch RUN PROGRAM...` makes the command for PROGRAM on all tasks of the job and supervises it.
#
# What counts is what the program says of its end in RUN/journal.jsonl; an srun that ends with 0 or 75 without such a word has
# failed. So RUN must be the same path here and for the program (in a container, too), on a file system that both see.
#
#   exit code             what happens
#   0                     done
#   75                    stopped cleanly with work left, as the time limit is near: back into the queue. If nothing was committed since
#                         the start, it is a failure all the same
#   2                     wrong usage, config or model: final
#   1, said by the program  some recipes cannot be made, the others are done: final
#   73                    another job has the run: final, and nothing is written there
#   "bad node: N ...: why" in what the program prints (exit code 76, or another where the launcher ends all ranks): back into the
#                         queue, without these nodes. If all of several nodes say it, it is not the nodes: final, exit code 2
#   any, after SIGTERM    preempted or cancelled: Slurm itself requeues the one and not the other. But a SIGTERM 30 s or more after
#                         the warning means that time is up and the job over: back into the queue
#   anything else         a failure: a crash or a failed launch. First a new step in the same allocation: a node that lost power
#                         refuses a step number it has seen before. If that fails, too, back into the queue, for other nodes
#   (no end)              the node of this script died: Slurm requeues the job (#SBATCH --requeue)
#
# Failures are listed in RUN/failures.log. The sixth of a submission (job id) with nothing committed between them is final. The
# script puts the job back MAX_RESTARTS times at most; preemptions and lost nodes count, too.

: "${MAX_RESTARTS:=100}" "${MAX_FAILURES:=6}"
: "${CONFIRM_SECONDS:=60}"  # a network file system may show what another node wrote as late as that
: "${RETRY_SECONDS:=10}"    # for Slurm to clear a dead step away, or to find out that a node is lost

# A line for people. Where the log cannot take it, as its disk is full, it becomes the job's comment in Slurm.
say() {
  printf '%s\n' "$*" 2>/dev/null || scontrol update "JobId=$SLURM_JOB_ID" "Comment=$*" || true
}

finished_blocks() {
  { find "$1/recipes" -name 'block-*.h5' 2>/dev/null || true; } | wc -l  # no folder before the first start
}

# Changes whenever something is committed: names and sizes of calibration, blocks, snapshots, exports and results. What every start
# writes, and what is half written, does not count.
progress_of() {
  { if cd "$1"; then
    find . \( -name '*.tmp' -o -name '*.partial' -o -name '*.old' -o -path ./scratch -o -path ./report \) -prune \
      -o -type f \( -path './*/*' -o -name calibration.h5 \) -printf '%P %s\n' || true
  fi; } 2>/dev/null |
    LC_ALL=C sort | cksum | tr ' ' -
}

# Notes a failure, and counts those without progress in `failures`. A full disk must not end this script: then it counts what it saw.
count_failure() {
  local mark blocks
  mark=$(progress_of "$run")
  blocks=$(finished_blocks "$run")
  [[ $mark == "$marked" ]] || failures=0
  marked=$mark
  failures=$((failures + 1))
  if { mkdir -p "$run" && echo "$(date +%FT%T) job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1)):" \
    "$1, $blocks blocks finished, progress $mark" >>"$run/failures.log"; } 2>/dev/null; then
    failures=$(grep -c " job $SLURM_JOB_ID on .*, progress $mark\$" "$run/failures.log")
  else
    unwritten=yes
  fi
  say "$1, $blocks blocks finished, failure $failures of $MAX_FAILURES without progress"
}

# The line that starts this job again, by names that the batch script lists in `settings_of_job`.
say_how_to_go_on() {
  local name line
  line="cd $(printf %q "$PWD") &&"
  # shellcheck disable=SC2154  # the batch script sets it
  for name in "${settings_of_job[@]}"; do
    if [[ ${!name:-} ]]; then line+=" $name=$(printf %q "${!name}")"; fi
  done
  say "to go on: $line sbatch ${SLURM_JOB_NUM_NODES:+--nodes=$SLURM_JOB_NUM_NODES }${1:+--exclude=$1 }${batch_script:-SCRIPT}"
}

# Ends this script with this exit code: nothing may come after it. Nodes, with commas: to be left out from now on.
put_back() {
  local code=$1 nodes=${2:-} restarts=${SLURM_RESTART_COUNT:-0} before
  if [[ $unwritten ]]; then
    say "$run/failures.log cannot be written, so that failures could not be counted over restarts: not put back"
    say_how_to_go_on "$nodes"
    exit "$code"
  elif [[ $restarts -ge $MAX_RESTARTS ]]; then
    say "started $((restarts + 1)) times already (MAX_RESTARTS=$MAX_RESTARTS): not trying again"
    say_how_to_go_on "$nodes"
    exit "$code"
  fi
  before=$(scontrol show job -o "$SLURM_JOB_ID" 2>/dev/null | sed -n 's/.* ExcNodeList=\([^ ]*\).*/\1/p') || true
  trap '' TERM  # which the requeueing sends, while Slurm changes the nodes of a job that waits, and of no other
  if ! scontrol requeue "$SLURM_JOB_ID"; then
    say "Slurm does not put this job back"
    say_how_to_go_on "$nodes"
  elif [[ $nodes ]]; then
    if [[ $before && $before != "(null)" ]]; then nodes=$before,$nodes; fi
    if scontrol update "JobId=$SLURM_JOB_ID" "ExcNodeList=$nodes"; then
      say "put back without $nodes; to take them again: scontrol update JobId=$SLURM_JOB_ID ExcNodeList="
    else
      say "put back, but Slurm does not leave $nodes out: scontrol update JobId=$SLURM_JOB_ID ExcNodeList=$nodes"
    fi
  fi
  exit "$code"
}

# A clean stop, or the end of the time: back into the queue, but not for ever where nothing comes of it.
put_back_for_more() {
  if [[ $(progress_of "$run") == "$at_start" ]]; then
    count_failure "$2 without progress"
    if [[ $failures -ge $MAX_FAILURES ]]; then
      say "not tried again: a start does not last long enough for the next unit of work"
      say_how_to_go_on
      exit "$1"
    fi
  fi
  put_back "$1"
}

# srun takes SIGTERM as an order to kill every task at once, and mpirun does, too, so both signals go on as SIGUSR1, which the program
# treats alike. Again and again: a program that just starts does not listen yet. And not at once: a task that srun has just started
# does not ignore the signal yet (check_node), and would be ended by it.
ask_to_stop() {
  local pid=$step rest=$((began + 3 - SECONDS))
  if [[ $pid ]]; then
    (
      if ((rest > 0)); then sleep "$rest"; fi
      while kill -USR1 "$pid"; do sleep 5; done
    ) >/dev/null 2>&1 &
  fi
}

on_warning() {
  warned=$SECONDS
  ask_to_stop
}

on_terminate() {
  terminated=yes
  ask_to_stop
  if [[ $warned && $((SECONDS - warned)) -ge 30 ]]; then
    say "out of time before the unit in flight was done"
    put_back_for_more 143 "out of time"
  fi
}

# The exit code that the program wrote down as the last act of this launch; empty if it did not.
word_of_the_program() {
  local line
  ls "$run" >/dev/null 2>&1 || true  # a network file system asks its server again
  line=$({ grep -hsF "\"launch\":\"$ROUNDHOUSE_LAUNCH\"" "$run/journal.jsonl" || true; } | tail -n 1)
  if [[ $line =~ '"exit_code":'([0-9]+) ]]; then echo "${BASH_REMATCH[1]}"; fi
}

# Puts the program's word in place of `status`, srun's: that can be 0 where a task was never started, and 137 where all was done.
settle_status() {
  local deadline=$((SECONDS + CONFIRM_SECONDS))
  while said=$(word_of_the_program); [[ ! $said && $status =~ ^(0|75)$ && $SECONDS -lt $deadline && ! $terminated ]]; do
    sleep 1
  done
  if [[ $said ]]; then
    status=$said
  elif [[ $status =~ ^(0|75)$ ]]; then
    say "the step ended with exit code $status, but $run/journal.jsonl does not say that the program did: taken for a failed launch"
    status=1
  fi
}

# Passes lines on and keeps those about bad nodes. It must outlive whatever the signals end, and a disk that is full.
watch_output() {
  trap '' TERM USR1 INT
  local line
  while IFS= read -r line || [[ $line ]]; do
    printf '%s\n' "$line"
    if [[ $line == *"bad node: "* ]]; then printf '%s\n' "$line" >>"$notes/bad"; fi
  done 2>/dev/null || true
}

# Slurm's names of the nodes that are said to be bad, with commas; hosts may call themselves by longer names.
find_bad_nodes() {
  local name of_job
  of_job=$(scontrol show hostnames "$SLURM_JOB_NODELIST" 2>/dev/null) || of_job=''
  bad_nodes=$({ grep -os 'bad node: [^ :]*' "$notes/bad" || true; } | sed 's/bad node: //' | while read -r name; do
    if [[ $of_job ]] && ! grep -qx "$name" <<<"$of_job"; then name=${name%%.*}; fi
    printf '%s\n' "$name"
  done | sort -u | paste -sd,)
}

# Runs the step in the background, so that signals are seen while it works. Its exit code is in `status`, nodes that it calls bad, with
# commas, in `bad_nodes`.
run_step() {
  local watcher i
  launches=$((launches + 1))
  began=$SECONDS
  ROUNDHOUSE_LAUNCH=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}.$launches-$(date +%s.%N)
  export ROUNDHOUSE_LAUNCH
  watcher=''
  if notes=$(mktemp -d 2>/dev/null) && mkfifo "$notes/output"; then
    "$@" >"$notes/output" 2>&1 &
    step=$!
    watch_output <"$notes/output" &
    watcher=$!
  else  # no room: then nobody looks for bad nodes
    "$@" &
    step=$!
  fi
  if [[ $warned || $terminated ]]; then ask_to_stop; fi
  # A trapped signal ends `wait` early, with a status above 128, while the step goes on.
  while :; do
    status=0
    wait "$step" || status=$?
    kill -0 "$step" 2>/dev/null || break
  done
  step=''
  # It ends with its last writer: not one that the step has left behind.
  bad_nodes=''
  if [[ $watcher ]]; then
    for ((i = 0; i < 50; ++i)); do
      kill -0 "$watcher" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL "$watcher" 2>/dev/null || true
    find_bad_nodes
  fi
  if [[ $notes ]]; then rm -rf "$notes"; fi
}

# Before the program, on every node: a node that does not see it says so. srun itself would end with 2, as for a wrong config. The
# others get time to say the same. And SIGUSR1 must not end a program that does not listen yet.
# shellcheck disable=SC2016  # it is for the tasks to expand
check_node='trap "" USR1
cd "$1" 2>/dev/null && command -v "$2" >/dev/null && shift && exec "$@"
echo "bad node: ${SLURMD_NODENAME:-$(hostname)}: it does not see $2 from $1"
sleep 3
exit 76'
on_each_node="sh -c $check_node roundhouse"

supervise() {
  local run=$1 status='' said='' nodes step began=0 launches=0 warned='' terminated='' failures=0 marked='' unwritten='' notes bad_nodes at_start command
  shift
  step=''
  trap on_warning USR1
  trap on_terminate TERM
  at_start=$(progress_of "$run")
  command="$*"
  say "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1))," \
    "$(finished_blocks "$run") blocks finished: ${command/"$on_each_node $PWD "/}"
  while [[ ! $terminated ]]; do
    run_step "$@"
    settle_status
    if [[ $status == 0 ]]; then
      say "done"
      exit 0
    elif [[ $terminated ]]; then
      say "stopped with exit code $status after SIGTERM"
      exit "$status"
    elif [[ $status == 75 ]]; then
      say "stopped cleanly with work left"
      put_back_for_more 75 "stopped cleanly"
    elif [[ $status == 73 ]]; then
      say "not tried again: another job has $run, as stands above"
      exit 73
    elif [[ $said == 1 ]]; then
      say "not tried again: recipes could not be made, as stands above, and all others are done"
      exit 1
    elif [[ $bad_nodes ]]; then
      nodes=$(tr , '\n' <<<"$bad_nodes" | wc -l)
      if [[ $nodes -gt 1 && $nodes -ge ${SLURM_JOB_NUM_NODES:-1} ]]; then
        say "not tried again: all nodes say that they are bad, so what is wrong is the same everywhere"
        exit 2
      fi
      count_failure "bad nodes $bad_nodes"
      if [[ $failures -ge $MAX_FAILURES ]]; then
        say "not tried again: that was the last failure allowed without progress"
        say_how_to_go_on "$bad_nodes"
        exit 76
      fi
      put_back 76 "$bad_nodes"
    elif [[ $status == 2 ]]; then
      say "not tried again: what is wrong stands above"
      exit 2
    fi

    count_failure "failed with exit code $status"
    if [[ $failures -ge $MAX_FAILURES ]]; then
      say_how_to_go_on
      exit "$status"
    elif [[ $warned || $((failures % 2)) == 0 ]]; then  # after the warning there is no time to try again here
      put_back "$status"
    fi
    sleep "$RETRY_SECONDS"
  done
  exit "${status:-143}"
}

# Processors for each task: what sbatch was told, else those of the smallest node, shared by its tasks. From "96(x3),64".
cpus_per_task() {
  local each least=''
  if [[ ${SLURM_CPUS_PER_TASK:-} ]]; then
    echo "$SLURM_CPUS_PER_TASK"
    return
  fi
  for each in ${SLURM_JOB_CPUS_PER_NODE//,/ }; do
    each=${each%%(*}
    if [[ ! $least || $each -lt $least ]]; then least=$each; fi
  done
  echo $((least / ${SLURM_NTASKS_PER_NODE:-1}))
}

# slurm/site.sh may set SRUN_MPI, srun_options and `launcher`.
launch() {
  local run=$1
  shift
  SRUN_CPUS_PER_TASK=$(cpus_per_task)  # srun does not take it over from sbatch
  export SRUN_CPUS_PER_TASK
  if [[ ! ${launcher[*]:-} ]]; then
    launcher=(srun "--mpi=${SRUN_MPI:-pmix}" --kill-on-bad-exit=1 --wait=60 "${srun_options[@]}")
  fi
  supervise "$run" "${launcher[@]}" sh -c "$check_node" roundhouse "$PWD" "$@"
}
