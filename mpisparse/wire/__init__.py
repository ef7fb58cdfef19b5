"""How a sparse vector is written for the wire: a header, index coding and value coding."""

from mpisparse.wire.header import SIZE as HEADER_SIZE
from mpisparse.wire.header import Expectation
from mpisparse.wire.indices import IndexCoding
from mpisparse.wire.message import ValueCoding, Wire, decode, encode, rounded, warm_up
from mpisparse.wire.rows import decode_rows, encode_rows

__all__ = [
    "HEADER_SIZE",
    "Expectation",
    "IndexCoding",
    "ValueCoding",
    "Wire",
    "decode",
    "decode_rows",
    "encode",
    "encode_rows",
    "rounded",
    "warm_up",
]
