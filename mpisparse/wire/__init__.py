"""How a sparse vector is written for the wire: a header, index coding and value coding."""

from mpisparse.wire.header import SIZE as HEADER_SIZE
from mpisparse.wire.header import Expectation
from mpisparse.wire.message import ValueCoding, Wire, decode, encode

__all__ = ["HEADER_SIZE", "Expectation", "ValueCoding", "Wire", "decode", "encode"]
