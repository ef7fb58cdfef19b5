"""Handwritten digits of 8x8 pixels, which travel with the package: a real data set that needs no download.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
doi:10.24432/C50P49, licence CC BY 4.0. `digits.npz` holds the 1,797 images of that set's test file, in the order in
which scikit-learn's `load_digits` gives them, as uint8 grey levels 0 to 16, and the labels 0 to 9.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from importlib.resources import files

import numpy as np

from mpisparse.errors import DataError
from mpisparse.training.data.base import Images, Split, every_fifth, image_split

SAMPLES = 1797


def load() -> Split:
    """Return 1,438 train and 359 test images of shape (1, 8, 8), 10 classes.

    The split is fixed: samples 4, 9, 14, ... are test. Neighbours in the file are often by one writer, so the accuracy
    on this test split is higher than on digits of writers never seen.

    Raises:
        DataError: the installed package is damaged.
    """
    everything = _read()
    train, test = every_fifth(SAMPLES)
    return image_split(
        "digits",
        Images(everything.pixels[train], everything.labels[train]),
        Images(everything.pixels[test], everything.labels[test]),
        num_classes=10,
    )


def _read() -> Images:
    resource = files("mpisparse.training.data") / "digits.npz"
    try:
        with np.load(io.BytesIO(resource.read_bytes()), allow_pickle=False) as archive:
            images = Images(archive["images"][:, None], archive["labels"])
    except (OSError, EOFError, LookupError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{resource} cannot be read ({error}): install mpisparse again") from error
    if images.pixels.shape != (SAMPLES, 1, 8, 8) or images.labels.shape != (SAMPLES,):
        raise DataError(f"{resource} holds {images.pixels.shape} pixels, not {SAMPLES} digits: install mpisparse again")
    return images
