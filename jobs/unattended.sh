# shellcheck shell=bash
# What the scripts of this directory share: they source it. A job that is told to make room has its ranks save, and comes
# back by itself, for as long as that makes progress. docs/cluster.md tells it for people.

#: The exit codes with which `mpisparse` says that it saved and would go on, and that a rank did not come.
readonly saved=75 hung=74

#: The srun that runs now, or empty, and whether this shell was told to make room.
step=""
told=0
#: Set by a signal: the `wait` that it cut short has to be repeated.
cut_short=0

say() {
  printf '%s %s: %s\n' "$(date -u +%FT%TZ)" "$(job_name)" "$*"
}

# Print the job as scontrol wants it: a task of an array has its own name.
job_name() {
  if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then
    echo "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
  else
    echo "${SLURM_JOB_ID:-job}"
  fi
}

# Take up the site file, its modules and the Python environment.
enter_site() {
  if [ -n "${MPISPARSE_SITE:-}" ]; then
    set -a
    # shellcheck source=jobs/sites/generic.env
    . "$MPISPARSE_SITE"
    set +a
  fi
  local module
  # Other people's scripts use variables that are not set.
  set +u
  for module in ${MPISPARSE_MODULES:-}; do
    module load "$module"
  done
  if [ -n "${MPISPARSE_VENV:-}" ]; then
    # shellcheck source=/dev/null
    . "$MPISPARSE_VENV/bin/activate"
  fi
  set -u
  if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    # Since Slurm 22.05 a step does not inherit the second one.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}" SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
  fi
}

# The signal that sbatch --signal=B:USR1@... asked for: pass it on to the ranks, again and again, since ranks that are still
# starting do not listen. srun forwards USR1; on TERM it kills its ranks.
make_room() {
  cut_short=1
  if [ "$told" -eq 0 ] && [ -n "$step" ]; then
    while kill -USR1 "$step" 2>/dev/null; do sleep 5; done >/dev/null &
  fi
  told=1
}
trap make_room USR1

# Run a command on all tasks of the job, and return its exit code. srun is in the background, since bash runs no trap
# while it waits for a command in the foreground.
run_step() {
  local options=(--kill-on-bad-exit=1) code next
  if [ -n "${MPISPARSE_SRUN_MPI:-}" ]; then
    options+=("--mpi=$MPISPARSE_SRUN_MPI")
  fi
  # shellcheck disable=SC2206 # several words
  options+=(${MPISPARSE_SRUN_OPTIONS:-})
  if [ "$told" -eq 1 ]; then
    return "$saved"
  fi
  srun "${options[@]}" bash jobs/rank.sh "$@" &
  step=$!
  cut_short=0
  wait "$step" && code=0 || code=$?
  while [ "$cut_short" -eq 1 ]; do
    cut_short=0
    wait "$step" && next=0 || next=$?
    # 127: the first wait had seen the step's end, and bash has forgotten it.
    [ "$next" -eq 127 ] || code=$next
  done
  step=""
  return "$code"
}

# Print the steps that are safe in checkpoints of the given run directories, added up. A checkpoint whose replacement was
# cut short is still one; `step-N.tmp`, which a job that is killed while it saves leaves, is none. Only digits reach the
# arithmetic of bash, which would run commands that stand in a name.
steps_done() {
  local run path newest total=0
  for run in "$@"; do
    newest=0
    for path in "$run"/checkpoints/step-*; do
      if [[ -d $path && ${path##*/} =~ ^step-([0-9]{8,18})(\.replaced)?$ ]] && ((10#${BASH_REMATCH[1]} > newest)); then
        newest=$((10#${BASH_REMATCH[1]}))
      fi
    done
    total=$((total + newest))
  done
  echo "$total"
}

# Print a setting that is to be a whole number, or end the job where it is none: comparing it would fail unnoticed.
whole_number() {
  local name=$1 value=$2
  if ! [[ $value =~ ^[0-9]{1,9}$ ]]; then
    say "$name is '$value', which is no whole number: set it to one, such as 20" >&2
    exit 78
  fi
  echo "$((10#$value))"
}

# Note in DIRECTORY/starts.tsv that the job starts after so many steps. A job that Slurm started again stops here if the
# start before it came to nothing, or if there were too many.
note_start() {
  local directory=$1 steps=$2 restart before
  restart=$(whole_number SLURM_RESTART_COUNT "${SLURM_RESTART_COUNT:-0}")
  before=$(steps_at_last_start "$directory/starts.tsv")
  if [ "$restart" -gt 0 ] && [ -n "$before" ] && [ "$steps" -le "$before" ]; then
    say "start $restart found $steps steps saved, no more than the start before it: stopping. Give it more time, or save" \
      "more often (checkpoint.every), and submit it again"
    exit "$saved"
  fi
  stop_after_many "$restart" "$saved"
  if ! { mkdir -p "$directory" && end_last_line "$directory/starts.tsv" &&
    printf '%s\t%s\t%s\t%s\n' "$(job_name)" "$restart" "$steps" "$(date -u +%FT%TZ)" >>"$directory/starts.tsv"; }; then
    say "cannot write $directory/starts.tsv (the line above says why): make room there, or name another run directory" >&2
    exit 78
  fi
  say "start $restart on ${SLURM_JOB_NUM_NODES:-1} node(s), after $steps steps"
}

# Print the steps that were saved when this job started last, as a file of starts has them; nothing when it has none.
steps_at_last_start() {
  if [ -f "$1" ]; then
    JOB=$(job_name) awk -F '\t' '
      $1 == ENVIRON["JOB"] && NF == 4 && $3 ~ /^[0-9]+$/ { steps = $3 }
      END { print steps }' "$1"
  fi
}

# End the last line of a file, if it was cut short.
end_last_line() {
  if [ -s "$1" ] && [ -n "$(tail -c 1 "$1")" ]; then
    echo >>"$1"
  fi
}

# End the job with an exit code if this would be one start too many.
stop_after_many() {
  local most
  most=$(whole_number MPISPARSE_RESTARTS "${MPISPARSE_RESTARTS:-20}")
  if [ "$1" -gt "$most" ]; then
    say "started again $most times (MPISPARSE_RESTARTS): stopping. Submit it again to go on"
    exit "$2"
  fi
}

# Print the exit code of a run, given that of its step. A step's 0 is believed where the run itself says that it has
# finished, by FUNCTION: a rank that leaves in the middle by exit(0) of some library makes launchers return 0, too. Where
# Slurm does not run this script, as when it is tried by hand, the code stays.
checked_code() {
  local code=$1 directory=$2 function=$3
  if [ "$code" -eq 0 ] && ! "$function" "$directory"; then
    say "srun returned 0, but nothing in $directory says that the run has finished: a rank left in the middle" >&2
    if [ -n "${SLURMD_NODENAME:-}" ] || [ "$(job_state)" = RUNNING ]; then
      code=$hung
    fi
  fi
  echo "$code"
}

# Whether a run's end record says that it has finished. train.sbatch removes the record before a step.
has_record() {
  grep -qs '"status": "finished"' "$1/end.json"
}

# Whether a run of a study has finished, as `mpisparse sweep` sees it, which leaves such a run as it is.
has_end() {
  has_record "$1" || tail -n 1 "$1/metrics.jsonl" 2>/dev/null | grep -q '"kind": *"end"'
}

# Print the state of this job in Slurm's queue; nothing when it is not there.
job_state() {
  squeue --noheader --jobs="$(job_name)" --format=%T 2>/dev/null || true
}

# End the job with an exit code. One whose ranks saved, or were lost with a machine (killed by a signal, or hanging), is
# put back into the queue, unless nothing was saved since this start, or it was cancelled meanwhile: a job that somebody
# ended must not come back.
leave() {
  local code=$1 before=$2 after=$3 total restart state
  total="$after steps are saved"
  if [ "$after" = 1 ]; then total="1 step is saved"; fi
  if [ "$code" -ne "$saved" ] && [ "$code" -ne "$hung" ] && [ "$code" -le 128 ]; then
    say "ends with exit code $code; $total"
    exit "$code"
  fi
  state=$(job_state)
  if [ "$state" != RUNNING ]; then
    say "exit code $code; $total. Not put back into the queue, where it is ${state:-no more}"
  elif [ "$after" -le "$before" ]; then
    say "exit code $code; $total, as many as at this start: stopping. If it ran out of time, give it more" \
      "(--time), or save more often (checkpoint.every); then submit it again"
  else
    restart=$(whole_number SLURM_RESTART_COUNT "${SLURM_RESTART_COUNT:-0}")
    stop_after_many "$((restart + 1))" "$code"
    say "exit code $code; $total. Back into the queue"
    scontrol requeue "$(job_name)" || say "scontrol requeue failed: submit it again to go on"
  fi
  exit "$code"
}
