"""render: a study as the files that a cluster takes: tables of runs, and the script that submits them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from jobs.plan import Batch, spread
from jobs.site import Site

#: The script that submits, and where it notes the names of its jobs.
SUBMIT, SUBMITTED = "submit.sh", "submitted.tsv"

_SCRIPT = """\
#!/usr/bin/env bash
# Submits {name} on {ranks} ranks. Written by `python -m jobs submit`. Arguments go to sbatch: --test-only, --hold.
set -euo pipefail
cd {checkout}
export MPISPARSE_HOME={checkout}
export MPISPARSE_SITE={site}
arguments=("$@")
jobs=()

# Submit the runs in a directory, and note the job.
submit() {{
  local directory=$1 job
  shift
  job=$(sbatch --parsable "$@")
  job=${{job%%;*}}
  if [ -n "$job" ]; then
    jobs+=("$job")
    printf '%s\\t%s\\t%s\\n' "$directory" "$job" "$(date -u +%FT%TZ)" >>{submitted}
    echo "$directory: job $job"
  fi
}}

{submissions}

if [ "${{#jobs[@]}}" -gt 0 ]; then
  dependency=$(IFS=: && echo "afterany:${{jobs[*]}}")
  sbatch "--dependency=$dependency" {analysis}
fi
"""


def render(
    name: str, batches: Sequence[Batch], site: Site, directory: Path, checkout: Path, options: Sequence[str] = ()
) -> dict[str, str]:
    """Return the files of a study, by their names below `directory`: tables, and the script that submits.

    Args:
        name: of the study.
        directory: of the study; an absolute path.
        checkout: where jobs/ lies.
        options: of `mpisparse sweep`, for every run.

    Raises:
        ConfigError: a number of ranks does not fill the site's nodes.
    """
    files = {f"{batch.directory}/table.tsv": table(batch) for batch in batches}
    submissions = [_submission(name, batch, site, directory, options) for batch in batches]
    analysis = [
        *site.options,
        f"--job-name={name}-analysis",
        f"--output={directory}/%x-%j.out",
        "jobs/analyze.sbatch",
        str(directory),
    ]
    script = _SCRIPT.format(
        name=name,
        ranks=", ".join(str(batch.ranks) for batch in batches),
        checkout=shlex.quote(str(checkout)),
        site=shlex.quote(str(site.path)),
        submitted=shlex.quote(str(directory / SUBMITTED)),
        submissions="\n".join(submissions),
        analysis=shlex.join(analysis),
    )
    return {**files, SUBMIT: script}


def table(batch: Batch) -> str:
    """Return the runs of a batch as jobs/scaling.sbatch reads them: index and directory, in the order to make them."""
    return "".join(f"{run.index}\t{run.directory}\n" for run in batch.runs)


def _submission(name: str, batch: Batch, site: Site, directory: Path, options: Sequence[str]) -> str:
    nodes, each = spread(batch.ranks, site.ranks_per_node)
    place = directory / batch.directory
    words = [*site.options, f"--job-name={name}-{batch.ranks}", f"--nodes={nodes}", f"--ntasks-per-node={each}"]
    if site.cpus_per_rank is not None:
        words.append(f"--cpus-per-task={site.cpus_per_rank}")
    words.append(f"--time={batch.minutes}")
    if batch.array:
        words += [f"--array=0-{len(batch.runs) - 1}", f"--output={place}/%x-%A_%a.out"]
    else:
        words.append(f"--output={place}/%x-%j.out")
    call = ["jobs/scaling.sbatch", str(place), *options]
    return f'submit {batch.directory} \\\n  {shlex.join(words)} \\\n  "${{arguments[@]}}" {shlex.join(call)}'
