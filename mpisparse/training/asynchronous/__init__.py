"""Asynchronous training: ranks share the parameters of a linear model, and never wait for each other.

shares.py     which samples a rank takes next
worker.py     what it does with them
snapshots.py  what rank 0 sees of the parameters meanwhile
report.py     the lines of the log and the closing table
run.py        the whole run
"""

from mpisparse.training.asynchronous.run import run_asynchronous

__all__ = ["run_asynchronous"]
