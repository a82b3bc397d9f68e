"""A decoder plugin for pydicom: lossless and 12-bit JPEG by libjpeg-turbo.

No other permissively licensed plugin reads 12-bit JPEG, and the one that reads lossless JPEG ends the process on some
damaged files. Interface: pydicom's "Pixel data decoder plugins".
"""

from __future__ import annotations

import imagecodecs
import numpy as np
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import (
    UID,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
)

from ssl_mednet.imaging.readers.jpeg_header import jpeg_size

NAME = "libjpeg-turbo"
_LOSSLESS = (JPEGLossless, JPEGLosslessSV1)
# What pydicom asks a plugin for.
DECODER_DEPENDENCIES = dict.fromkeys((*_LOSSLESS, JPEGExtended12Bit), ("imagecodecs",))


def is_available(uid: str) -> bool:
    """Whether this plugin decodes a transfer syntax."""
    return uid in DECODER_DEPENDENCIES


def decode(source: bytes, runner: DecodeRunner) -> bytearray:
    """One frame, as it is stored.

    Raises:
        ValueError: the compressed frame has another size or number of channels than the file says.
    """
    if jpeg_size(source) != (runner.rows, runner.columns):  # before memory is taken for what it claims
        raise ValueError("the compressed frame has another size than the file says")
    pixels: np.ndarray = imagecodecs.jpeg_decode(source)
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if channels != runner.samples_per_pixel:
        raise ValueError("the compressed frame has another number of channels than the file says")
    runner.set_option("bits_allocated", 8 * pixels.dtype.itemsize)
    if channels > 1:
        runner.set_option("planar_configuration", 0)
        if runner.transfer_syntax not in _LOSSLESS:  # libjpeg has turned YBR into RGB
            runner.set_option("photometric_interpretation", "RGB")
    return bytearray(pixels.tobytes())


def plugin_for(syntax: UID) -> str:
    """The decoder to use for a transfer syntax, "" for pydicom's own choice: never the one that ends the process."""
    if is_available(syntax):
        return NAME
    if syntax == JPEGBaseline8Bit:
        return "pillow"
    if syntax in JPEGLSTransferSyntaxes:
        return "pyjpegls"
    return "pylibjpeg" if syntax in JPEG2000TransferSyntaxes else ""


for _syntax in DECODER_DEPENDENCIES:
    get_decoder(_syntax).add_plugin(NAME, (__name__, decode.__name__))
