"""How large a JPEG says it is, so that memory is not taken for more than the file around it promised."""

from __future__ import annotations

_NO_FRAME = (0xC4, 0xC8, 0xCC)  # tables and reserved markers among the C0..CF that begin a frame
_ALONE = frozenset({0x01, 0xFF, *range(0xD0, 0xD9)})  # markers without a length behind them


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width in the first frame header (ITU-T T.81, B.2.2); None where there is none."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _ALONE:
            at += 1 if marker == 0xFF else 2
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
