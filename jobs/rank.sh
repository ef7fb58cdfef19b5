#!/usr/bin/env bash
# One rank of a step: srun starts this, and this starts the command that follows. With --kill-on-bad-exit srun ends all
# ranks as soon as one leaves with another code than 0, and returns the code of that signal. A code that all ranks are
# about to return (docs/cluster.md has them) therefore waits until the others have left, too.
trap '' USR1 # nor does one that is still starting, and does not listen yet, die of it; the shell repeats it
trap : TERM  # the command gets it as well
if [ -n "${PMI_FD:-}" ]; then # Slurm's pmi2
  set -- python "$(dirname "$0")/relay.py" "$@"
fi
"$@"
code=$?
case $code in
  70 | 74 | 75 | 78)
    exec 2>/dev/null # where bash would say that the sleep was cut short
    sleep 3
    ;;
esac
exit "$code"
