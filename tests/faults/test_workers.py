"""What schedulers send to all processes of a rank ends none of its workers, however they were started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.launch import run

PROGRAM = """
import multiprocessing, os, signal, sys, time
import mpisparse as ms
from torch.utils.data import DataLoader, Dataset

class Slow(Dataset):
    def __len__(self): return 24
    def __getitem__(self, i): time.sleep(.02); return i

def wait(): time.sleep(1000)

def main(method):
    loader = DataLoader(Slow(), batch_size=2, num_workers=2, multiprocessing_context=method)
    with ms.Preemption() as preemption:
        seen = 0
        for n, batch in enumerate(loader):
            seen += len(batch)
            if n == 1:
                for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGINT): os.killpg(0, number)
        codes = set()
        for _ in range(30 if method == "fork" else 1):  # ended while it starts
            worker = multiprocessing.get_context(method).Process(target=wait, daemon=True)
            worker.start()
            worker.terminate()
            worker.join(60)
            codes.add(worker.exitcode)
        print(preemption.reason, seen, *codes)

if __name__ == "__main__": main(sys.argv[1])
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_outlive_what_is_sent_to_the_whole_rank_and_still_end_by_sigterm(method: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    outcome = run([sys.executable, "program.py", method], timeout=200, cwd=tmp_path, fresh=True)
    assert outcome.code == 0, outcome.text
    assert outcome.stdout == "SIGUSR1 24 -15\n", outcome.text
    assert "Traceback" not in outcome.stderr, outcome.text
