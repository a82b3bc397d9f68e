"""What is remembered of an image beside its pixels: hashes, moments, and whether there is anything to see."""

from __future__ import annotations

import hashlib
import hmac
import os
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_mednet.data.schema import Flag
from ssl_mednet.errors import IngestError

KEY, KEY_FILE = "SSL_MEDNET_GROUP_KEY", "SSL_MEDNET_GROUP_KEY_FILE"
_SIDE, _KEPT = 32, 8  # of a perceptual hash: side of the picture, and of the low frequencies that are kept
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_EMPTY_SHARE, _EMPTY_STEP = 0.01, 0.05  # nearly empty: so few pixels lie so far from the commonest level


def group_key() -> bytes | None:
    """The user's key for groups, from ``$SSL_MEDNET_GROUP_KEY`` or the file ``$SSL_MEDNET_GROUP_KEY_FILE``.

    Raises:
        IngestError: the file cannot be read, or the key is empty.
    """
    key: bytes | None = None
    if (text := os.environ.get(KEY)) is not None:
        key = text.encode()
    elif (path := os.environ.get(KEY_FILE)) is not None:
        try:
            key = Path(path).expanduser().read_bytes().strip()
        except OSError as error:
            raise IngestError(f"${KEY_FILE}: the key cannot be read from {path}", error.strerror or "") from error
    if key is not None and not key:
        raise IngestError(f"the key for groups is empty (${KEY} or ${KEY_FILE})", "give it a long random text")
    return key


def keyed_hash(key: bytes, identifier: str) -> int:
    """63 bits of HMAC-SHA256 (RFC 2104, truncated as its section 5 allows); -1 for an empty identifier.

    Without the key nobody can find the identifier by trying all of them, as is possible with plain hashes of names,
    dates and record numbers.
    """
    if not identifier:
        return -1
    return int.from_bytes(hmac.digest(key, identifier.encode(errors="surrogateescape"), "sha256")[:8], "big") >> 1


def pixel_hash(pixels: np.ndarray) -> bytes:
    """SHA-256 of the pixels ``[H, W, C]`` with their shape and depth."""
    return hashlib.sha256(f"{pixels.shape} {pixels.dtype.name} ".encode() + pixels.tobytes()).digest()


def perceptual_hash(unit: np.ndarray) -> int:
    """64 bits that stay nearly the same where a picture is scaled, compressed or brightened.

    The picture ``[H, W, C]`` in [0, 1] is reduced to 32 x 32, its cosine transform taken, and each of the 8 x 8 lowest
    frequencies, the mean apart, compared with their median (pHash: Zauner, Implementation and Benchmarking of
    Perceptual Image Hash Functions, 2010, section 3.2.1). Two pictures are alike where few bits differ.
    """
    gray = unit[..., 0] if unit.shape[2] == 1 else unit @ LUMA
    small = np.asarray(Image.fromarray(gray).resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float64)
    # The frequencies 1 to 8 of both axes, as in the reference implementation: frequency 0 is brightness alone.
    low = (_cosines() @ small @ _cosines().T).ravel()
    bits = np.packbits(low > np.median(low))
    return int.from_bytes(bits.tobytes(), "big")


@cache
def _cosines() -> np.ndarray:
    """Rows 1 to 8 of the DCT-II of length 32, ``[8, 32]``."""
    k, n = np.arange(1, _KEPT + 1)[:, None], np.arange(_SIDE)
    return np.cos(np.pi * k * (2 * n + 1) / (2 * _SIDE))


def moments(unit: np.ndarray) -> np.ndarray:
    """Mean and mean square of each channel, ``[2, C]`` float64."""
    flat = unit.reshape(-1, unit.shape[2]).astype(np.float64)
    return np.stack([flat.mean(axis=0), (flat**2).mean(axis=0)])


def flags(pixels: np.ndarray, unit: np.ndarray) -> Flag:
    """What is wrong with a picture: all pixels equal, or hardly any that differs from the commonest level.

    The commonest level is the fullest of 256 bins of the picture as it is seen through its window.
    """
    if (pixels == pixels[0, 0]).all():
        return Flag.CONSTANT | Flag.NEARLY_EMPTY
    gray = unit.mean(axis=2)
    counts = np.bincount((gray * 255).astype(np.uint8).ravel(), minlength=256)
    level = (int(counts.argmax()) + 0.5) / 255
    differs = np.count_nonzero(np.abs(gray - level) > _EMPTY_STEP)
    return Flag.NEARLY_EMPTY if differs < _EMPTY_SHARE * gray.size else Flag(0)
