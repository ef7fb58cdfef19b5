"""The sections `memory` and `exchange`: what is kept, and how messages are cut, written and averaged."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mpisparse.training.section import Section
from mpisparse.wire import IndexCoding, ValueCoding


class Memory(Section):
    """What is kept of the rest: "auto" is error feedback for biased rules, nothing for unbiased ones."""

    name: Literal["auto", "none", "error_feedback", "momentum_correction"] = "auto"
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    masking: bool = True
    nesterov: bool = False


class Exchange(Section):
    """How messages are cut, written and averaged.

    granularity, bucket_mib, dense_vectors, dense_below: what is selected from as one, and what is never sparsified.
    values: value coding of messages.
    dense: how whole tensors are averaged: "pieces" gives the same bits on every MPI, "bfloat16" rounds them and halves
        their bytes, "allreduce" is the library's own.
    indices: index coding of messages.
    gigabits: speed of the network in Gbit/s, from which indices "auto" judges what bytes are worth.
    nonfinite: what to do when a gradient holds NaN or infinity.
    overlap: send buckets while backward still runs: "off", "on", or "auto", which tries both; the bits are the same.
    gauge: log squared norms before and after sparsification, from which the variance of a rule is read.
    """

    granularity: Literal["model", "tensor", "bucket"] = "model"
    bucket_mib: Annotated[float, Field(gt=0)] = 25.0
    dense_vectors: bool = True
    dense_below: Annotated[int, Field(ge=0)] = 0
    dense: Literal["pieces", "bfloat16", "allreduce"] = "pieces"
    values: ValueCoding = "auto"
    indices: IndexCoding = "auto"
    gigabits: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    nonfinite: Literal["raise", "skip"] = "raise"
    overlap: Literal["auto", "on", "off"] = "off"
    gauge: bool = False
