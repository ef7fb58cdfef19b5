"""Loops over whole vectors: finding cuts, tossing coins, compacting, coding. All are linear in their input's length.

vectors.py    the vector as every kernel sees it, and the passes that others build on
histogram.py  find_cut: the last magnitude at which a monotone law holds, without sorting the vector
largest.py    find_largest: the entries of largest magnitude, ties apart
levels.py     level_for_count, level_for_variance, level_by_scaling: the one number that sets GSpar's probabilities
coins.py      toss_coins, toss_equal_coins: independent choices at given probabilities
words.py      bytes as 64-bit words, and what else the coding of indices shares
gaps.py       rising indices as Golomb-Rice codes of their gaps
blocks.py     rising indices as bytes, by blocks of 256 positions
bits.py       rising indices as one bit a position
"""

from __future__ import annotations
