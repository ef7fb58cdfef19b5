"""Loops over whole vectors: finding cuts, tossing coins, compacting, coding. All are linear in their input's length.

compiled.py   how kernels are declared, and where what they are compiled to is kept
source.py     Source: a vector to select from, made by the first look at it: what rules and memories talk about
anywhere.py   the same for a vector on the host or on a device
passes.py     passes that do everything at once: add up, look for large entries, clear
find.py       find_at_least: which entries reach a magnitude
largest.py    keep_largest: the entries of largest magnitude, without preference among equals
histogram.py  find_cut: the last magnitude at which a monotone law holds, without sorting the vector
levels.py     level_for_count, level_for_variance, level_by_scaling: the one number that sets GSpar's probabilities
coins.py      toss_coins, toss_equal_coins: independent choices at given probabilities
grids.py      draw_levels: every entry becomes one of the two nearest multiples of a unit
sums.py       mean_into: the mean of the messages, in time that their entries take
atomic.py     adding to memory that others add to at the same moment: by compare-and-swap, nothing lost
linear.py     updates of a linear model on parameters that other ranks change meanwhile, compiled as a whole
device.py     sources that are torch tensors on an accelerator
vectors.py    the vector as every kernel sees it
philox.py     random words that are a function of a counter
simd.py       eight comparisons at once, and what else numba has no words for
threads.py    spans of a vector, each for a thread of its own
words.py      bytes as 64-bit words, and what else the coding of indices shares
gaps.py       rising indices as Golomb-Rice codes of their gaps
blocks.py     rising indices as bytes, by blocks of 256 positions
bits.py       rising indices as one bit a position
"""

from __future__ import annotations
