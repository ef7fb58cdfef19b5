"""Messages of whole rows of a matrix: which rows, and their float32 entries. The format is in docs/wire-format.md."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpisparse.errors import WireError
from mpisparse.sparse import Indices, index_dtype
from mpisparse.wire import header as headers
from mpisparse.wire.header import Expectation, Header

Bytes = NDArray[np.uint8]
Matrix = NDArray[np.float32]

#: The index coding that says so: a reader of entries refuses it.
ROWS = 4


def encode_rows(rows: Indices, values: Matrix, height: int, *, step: int, bucket: int, rank: int) -> Bytes:
    """Return the message that holds some rows of a matrix of `height` rows, uint8.

    Args:
        rows: strictly rising, each below `height`.
        values: float32 of shape (rows, width).
        step, bucket, rank: receivers check all three.

    Raises:
        WireError: the message would be longer than a header can say.
    """
    numbers = np.ascontiguousarray(rows, index_dtype(height))
    body = numbers.nbytes + values.nbytes
    headers.check_body(body)
    message = np.empty(headers.SIZE + body, np.uint8)
    start = headers.SIZE + numbers.nbytes
    message[headers.SIZE : start] = numbers.view(np.uint8)
    message[start:] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    fields = (ROWS, 0, 0, step, height * values.shape[1], values.size, bucket, rank, body)
    headers.write(Header(headers.VERSION, *fields), message)
    return message


def decode_rows(message: Bytes, width: int, height: int, expected: Expectation) -> tuple[Indices, Matrix]:
    """Return the rows' numbers and their entries, sharing no memory with `message`.

    Raises:
        WireError: the message is damaged, truncated, stale or foreign.
    """
    header = headers.read(message, expected)
    if (header.version, header.index_coding, header.value_coding) != (headers.VERSION, ROWS, 0):
        raise WireError(
            f"a message of index coding {header.index_coding} and value coding {header.value_coding} came where rows "
            f"(index coding {ROWS}, value coding 0) were due"
        )
    kind = index_dtype(height)
    number, rest = divmod(header.body, kind.itemsize + 4 * width)
    if rest or number * width != header.count:
        raise WireError(f"{header.count} entries in rows of {width} are announced in {header.body} bytes")
    start = headers.SIZE + number * kind.itemsize
    rows = message[headers.SIZE : start].copy().view(kind)
    if number and (int(rows[-1]) >= height or (rows[1:] <= rows[:-1]).any()):
        raise WireError(f"row numbers do not rise strictly below {height}")
    return rows, message[start:].copy().view(np.float32).reshape(number, width)
