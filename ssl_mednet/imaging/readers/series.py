"""Which DICOM files belong together, and in which order: from their headers, without their pixels."""

from __future__ import annotations

import functools
import io
import logging
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky.process_executor import TerminatedWorkerError

from ssl_mednet.imaging.readers import is_bare_dicom
from ssl_mednet.imaging.readers.frames import along_normal
from ssl_mednet.imaging.readers.silence import SILENCE

_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_TAGS = [
    "SOPClassUID", "SeriesInstanceUID", "InstanceNumber", "NumberOfFrames", "ImagePositionPatient",
    "ImageOrientationPatient",
]  # fmt: skip
HEADER = 1024**2  # bytes of a member of an archive that are looked at: what comes before the pixels is not longer
_MANY = 4000  # files from where processes pay, which take a second or two to start
_GAP = 1.5  # a step this many times the usual one means that slices are missing


@dataclass(frozen=True, slots=True)
class Header:
    """What one file says of its place in its series.

    Args:
        series: SeriesInstanceUID.
        slide: whether it is (a level of) a whole slide.
        key: orientation and position along the normal, mm; None where the file is no slice.
        number: InstanceNumber, which orders slices at one position only.
        frames: how many images it holds.
    """

    series: str
    slide: bool
    key: tuple[tuple[float, ...], float] | None
    number: int
    frames: int = 1

    @property
    def stack(self) -> tuple[str, bool] | None:
        """What names the files that this one belongs to; None where it is read on its own."""
        return (self.series, self.slide) if self.slide or self.key else None


@dataclass
class Stack:
    """Files that are one thing.

    Args:
        names: its files; slices in the order in which they lie in space.
        slide: whether they are the levels of one slide, which is read from all of them.
        remark: what is unusual about it, in words for a person, without any tag; empty where nothing is.
    """

    names: list[str]
    slide: bool = False
    remark: str = ""


def header(source: Path | bytes) -> Header | None:
    """What a file says of its place in its series; None where it is no DICOM, damaged, or of no series.

    Never raises for what is in the file: a file that cannot be placed is read on its own, and says then what is wrong.
    """
    try:
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
            head = file.read(132)
            bare = head[128:] != b"DICM"
            if bare and not is_bare_dicom(head):
                return None
            file.seek(0)
            with SILENCE:  # values are looked at as late as they are asked for
                data = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS, force=bare)
                return _header(data)
    except Exception as error:  # a damaged header raises anything; the reader will tell what is wrong
        logging.getLogger(__name__).debug("a header cannot be read: %s", type(error).__name__)
        return None


def headers(paths: Sequence[Path]) -> Iterator[Header | None]:
    """:func:`header` of each file, in order; of thousands by a process a core, as one takes a millisecond."""
    done = 0
    if len(paths) >= _MANY:
        with suppress(TerminatedWorkerError), parallel_config("loky", n_jobs=-1, idle_worker_timeout=10):
            for found in Parallel(batch_size=256, return_as="generator")(delayed(header)(path) for path in paths):
                yield found and _with_shared(found)
                done += 1
    yield from map(header, paths[done:])  # all, or what a process that was killed leaves


def _with_shared(found: Header) -> Header:
    """The same with the text and the tuple that others have too, which copies from another process are not."""
    key = found.key and (_shared(found.key[0]), found.key[1])
    return replace(found, series=sys.intern(found.series), key=key)


def _header(data: Any) -> Header | None:
    series = sys.intern(str(data.get("SeriesInstanceUID", "") or ""))
    if not series:
        return None
    frames = int(data.get("NumberOfFrames", 1) or 1)
    place = along_normal(data.get("ImagePositionPatient"), data.get("ImageOrientationPatient")) if frames == 1 else None
    slide = str(data.get("SOPClassUID", "")) == _WHOLE_SLIDE
    return Header(series, slide, place and (_shared(place[0]), place[1]), _whole(data), frames)


@functools.lru_cache(4096)
def _shared(orientation: tuple[float, ...]) -> tuple[float, ...]:
    """One object for all equal orientations: headers of millions of files are held at a time."""
    return orientation


def _whole(data: Any) -> int:
    try:
        return int(data.get("InstanceNumber", 0) or 0)
    except (TypeError, ValueError):
        return 0


def stacks(files: Iterable[tuple[str, Header | None]]) -> list[Stack]:
    """Files in the order in which they are to be read, those that belong together side by side.

    Args:
        files: name and header of every file, in the order of the source.

    Returns:
        Series in the order of their first files, slices by orientation, then position along the normal of
        ImageOrientationPatient (PS3.3 C.7.6.2.1.1), then InstanceNumber; whole slides with all their levels; every
        other file on its own.
    """
    found: list[Stack] = []
    series: dict[tuple[str, bool], list[tuple[Header, str]]] = defaultdict(list)
    for name, head in files:
        if head is None or head.stack is None:
            found.append(Stack([name]))
            continue
        known = series[head.stack]
        if not known:
            found.append(Stack([name], head.slide))
        known.append((head, name))
    of_name = {members[0][1]: members for members in series.values()}
    return [_stack(of_name[s.names[0]], s.slide) if s.names[0] in of_name else s for s in found]


def _stack(members: list[tuple[Header, str]], slide: bool) -> Stack:
    if slide:
        return Stack([name for _, name in members], slide=True)
    members = sorted(members, key=lambda m: (m[0].key, m[0].number, m[1]))
    return Stack([name for _, name in members], remark=_remark([head for head, _ in members]))


def _remark(heads: list[Header]) -> str:
    """Positions that are there twice, and gaps, in a sorted series; localizers of several orientations have neither."""
    keys = [head.key for head in heads if head.key is not None]
    if len({key[0] for key in keys}) > 1 or len(keys) < 3:
        return ""
    positions = np.array([key[1] for key in keys])
    steps = np.diff(np.unique(positions))
    said = []
    if doubles := len(positions) - len(steps) - 1:
        said.append(f"{doubles} of {len(positions)} slices lie where another one lies (phases, echoes, or duplicates)")
    if len(steps):
        usual = float(np.median(steps))
        missing = int(sum(max(1, round(step / usual) - 1) for step in steps[steps > _GAP * usual]))
        if missing:
            said.append(f"about {missing} slices are missing between the first and the last")
    return "; ".join(said)
