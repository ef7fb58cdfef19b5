#!/usr/bin/env bash
# Submits try on 1, 4 ranks. Written by `python -m jobs submit`. Arguments go to sbatch: --test-only, --hold.
set -euo pipefail
cd /home/me/mpisparse
export MPISPARSE_HOME=/home/me/mpisparse
export MPISPARSE_SITE=/home/me/mpisparse/jobs/sites/mine.env
arguments=("$@")
jobs=()

# Submit the runs in a directory, and note the job.
submit() {
  local directory=$1 job
  shift
  job=$(sbatch --parsable "$@")
  job=${job%%;*}
  if [ -n "$job" ]; then
    jobs+=("$job")
    printf '%s\t%s\t%s\n' "$directory" "$job" "$(date -u +%FT%TZ)" >>'/scratch/me/my runs/submitted.tsv'
    echo "$directory: job $job"
  fi
}

submit ranks-001 \
  --job-name=try-1 --nodes=1 --ntasks-per-node=1 --time=20 '--output=/scratch/me/my runs/ranks-001/%x-%j.out' \
  "${arguments[@]}" jobs/scaling.sbatch '/scratch/me/my runs/ranks-001'
submit ranks-004 \
  --job-name=try-4 --nodes=2 --ntasks-per-node=2 --time=20 '--output=/scratch/me/my runs/ranks-004/%x-%j.out' \
  "${arguments[@]}" jobs/scaling.sbatch '/scratch/me/my runs/ranks-004'

if [ "${#jobs[@]}" -gt 0 ]; then
  dependency=$(IFS=: && echo "afterany:${jobs[*]}")
  sbatch "--dependency=$dependency" --job-name=try-analysis '--output=/scratch/me/my runs/%x-%j.out' jobs/analyze.sbatch '/scratch/me/my runs'
fi
