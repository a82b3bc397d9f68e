"""A DICOM tag as a person writes it: ``StudyInstanceUID``, ``(0010,0020)``, or a private one; and what it says.

The value is for grouping alone: nothing in this module, or that is called from it, puts it into a message.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from pydicom.datadict import dictionary_VR, keyword_dict, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from ssl_mednet.errors import DataError, did_you_mean

_FILL = " \0\t\r\n"
_NUMBERS = re.compile(r"\(?([0-9a-f]{4}),?([0-9a-f]{4})\)?", re.IGNORECASE)
_OF_AN_OWNER = re.compile(r"\(?([0-9a-f]{3}[13579bdf]),(?:xx)?([0-9a-f]{2}),([^)]+)\)?", re.IGNORECASE)
HOW = "a keyword as StudyInstanceUID, (0010,0020), or of a private block (0019,xx0C,OWNER)"


@functools.cache
def parse_tag(text: str) -> tuple[int, str]:
    """The number of a tag, and the owner of its private block where that decides it (PS3.5 7.8.1).

    >>> parse_tag("PatientID"), parse_tag("(0019,xx0C,ACME 1.1)")
    ((1048608, ''), (1638412, 'ACME 1.1'))

    Raises:
        DataError: no tag; the message has the nearest keyword.
    """
    if found := _OF_AN_OWNER.fullmatch(text):
        return int(found[1] + "00" + found[2], 16), found[3].strip()
    if found := _NUMBERS.fullmatch(text):
        number = int(found[1] + found[2], 16)
    else:
        number = (text and tag_for_keyword(text)) or 0  # there are tags without a keyword
        if not number:
            raise DataError(f"tag:{text}: is no DICOM tag", did_you_mean(text, keyword_dict) or HOW)
    if number >> 16 == 0x7FE0 or _is_sequence(number):
        raise DataError(f"tag:{text}: holds no value that could name a group", HOW)
    return number, ""


def _is_sequence(number: int) -> bool:
    try:
        return dictionary_VR(number) == "SQ"
    except KeyError:  # private, or of a later edition
        return False


def value_of(data: Dataset, text: str) -> str:
    """What a file says at a tag, without the blanks that fill it up; empty where it says nothing.

    A private value that is known as bytes alone (implicit transfer syntaxes) is the same text as where its kind is.
    """
    number, owner = parse_tag(text)
    try:
        if owner:
            value = data.private_block(number >> 16, owner)[number & 0xFF].value
        else:
            element: Any = data.get(number)
            value = None if element is None else element.value
    except KeyError:
        return ""
    if value is None or isinstance(value, Sequence):
        return ""
    if isinstance(value, bytes):
        return value.decode("latin-1").strip(_FILL)
    several = value if isinstance(value, MultiValue) else [value]
    return "\\".join(map(str, several)).strip(_FILL)
