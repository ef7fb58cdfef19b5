"""Counter-based random numbers: any rank can make any other rank's draws again, at any step, from a few integers."""

from __future__ import annotations

import numpy as np

#: In the place of a rank: draws that all ranks make alike.
EVERYBODY = 2**64 - 1


def generator(seed: int, rank: int, step: int, bucket: int) -> np.random.Generator:
    """Return the random stream of one bucket of one rank at one step.

    Philox4x64-10 (Salmon et al., SC 2011), keyed by (seed, rank), its counter starting at (0, 0, bucket, step): streams
    of different ranks, steps and buckets never overlap, and nothing but `seed` and `step` needs to be saved.

    Args:
        seed: the run's seed, 0 to 2**64 - 1.
        rank: the rank that draws, so that the errors of different ranks are independent and average out.
        step: optimizer steps done before this one.
        bucket: index of the bucket that is drawn for.
    """
    counter = np.array([0, 0, bucket, step], np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array([seed, rank], np.uint64), counter=counter))
