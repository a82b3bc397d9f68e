"""zip and tar: their members as bytes, one bad member never in the way of the others.

Nothing is ever unpacked to disk. Absolute and parent paths, links and devices are refused although no path is used,
because an archive that has them is not what its owner thinks it is.
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO

from ssl_mednet.errors import UnreadableImage

MAX_MEMBER = 2 * 1024**3  # bytes of one member, unpacked
MAX_RATIO = 1000  # unpacked / packed; deflate of real pictures reaches about 300 for blank ones
_ALLOWED_ANYWAY = 16 * 1024**2  # small members may compress as well as they like
_CHUNK = 1024**2
_PACKED_TARS = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz"}
_DESCRIPTIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_MAX_DESCRIPTION = 1024**2  # bytes of the header of a member; real ones are a few hundred
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    MemoryError,
)

Member = tuple[str, bytes | UnreadableImage]


class _Member(tarfile.TarInfo):
    """A member whose name is not longer than names are: a bomb can also lie in what describes a file."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _DESCRIPTIONS and self.size > _MAX_DESCRIPTION:
            raise tarfile.ReadError("a header that is too long")
        return super()._proc_member(archive)  # type: ignore[misc]


def _open_tar(path: Path) -> tarfile.TarFile:
    """A tar, packed as its first bytes say. Trying all ways, as :mod:`tarfile` does, would take nearly any file for the
    old LZMA format, which asks for memory before it finds out."""
    with path.open("rb") as file:
        start = file.read(6)
    how = next((how for magic, how in _PACKED_TARS.items() if start.startswith(magic)), "")
    return tarfile.open(path, f"r:{how}", tarinfo=_Member)  # type: ignore[call-overload]


def _is_tar(path: Path) -> bool:
    with _open_tar(path):
        return True


def is_archive(path: Path) -> bool:
    """Whether a file is a zip (npz apart) or a tar, by its content."""
    if path.suffix.lower() in (".npz", ".nii", ".dcm") or path.name.lower().endswith(".nii.gz"):
        return False
    try:
        return _is_zip(path) or _is_tar(path)
    except _BROKEN:
        return False


def _is_zip(path: Path) -> bool:
    """Whether a file is a zip, also one that was cut off and has lost its directory."""
    with path.open("rb") as file:
        begun = path.suffix.lower() == ".zip" and file.read(4) == b"PK\x03\x04"
    return begun or zipfile.is_zipfile(path)


def names(path: Path) -> list[str]:
    """Names of all regular members, in the archive's order.

    Raises:
        UnreadableImage: the archive's directory cannot be read.
    """
    try:
        if _is_zip(path):
            with zipfile.ZipFile(path) as file:
                return [*dict.fromkeys(info.filename for info in file.infolist() if not info.is_dir())]
        return list(tar_names(path))
    except _BROKEN as error:
        raise UnreadableImage(path, "is a damaged archive: its directory cannot be read") from error


def tar_names(path: Path) -> Iterator[str]:
    """Names of the regular members of a tar as they come; none for any other file.

    What comes before damage is still good; :func:`members` reports the rest.
    """
    with suppress(*_BROKEN), _open_tar(path) as tar:
        for member in tar:
            if not member.isdir():
                yield member.name.removeprefix("./")


def members(path: Path, order: Sequence[str] = ()) -> Iterator[Member]:
    """Every regular member with its content, or with the reason why it has none.

    Args:
        order: names that come first, in this order; then, and in a tar always, the archive's order.
    """
    if _is_zip(path):
        yield from _zip_members(path, order=order)
    else:
        yield from _tar_members(path)


def read_member(path: Path, name: str) -> bytes:
    """The content of one member.

    Raises:
        UnreadableImage: it is not there or cannot be read.
    """
    for found, content in _zip_members(path, name) if _is_zip(path) else _tar_members(path, name):
        if found == name:
            if isinstance(content, UnreadableImage):
                raise content
            return content
    raise UnreadableImage(f"{path}!{name}", "no such member")


def heads(path: Path, wanted: Container[str], size: int) -> Iterator[tuple[str, bytes]]:
    """The first ``size`` bytes of some members, those left out that cannot be read (:func:`members` tells why)."""
    try:
        if _is_zip(path):
            with zipfile.ZipFile(path) as file:
                for info in file.infolist():
                    if info.filename in wanted and not info.flag_bits & 1:
                        with suppress(*_BROKEN), file.open(info) as stream:
                            yield info.filename, stream.read(size)
            return
        with _open_tar(path) as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if name in wanted and member.isreg() and (opened := tar.extractfile(member)):
                    yield name, opened.read(size)
    except _BROKEN:
        return


def _zip_members(path: Path, only: str = "", order: Sequence[str] = ()) -> Iterator[Member]:
    rank = {name: i for i, name in enumerate(order)}
    try:
        with zipfile.ZipFile(path) as file:
            infos = {info.filename: info for info in file.infolist()}.values()  # of one name the last, as unzip does
            for info in sorted(infos, key=lambda i: rank.get(i.filename, len(rank))):
                if info.is_dir() or (only and info.filename != only):
                    continue
                full = f"{path}!{info.filename}"
                reason = _unsafe(info.filename) or ("is protected by a password" if info.flag_bits & 1 else "")
                if (info.external_attr >> 16) & 0o170000 == 0o120000:
                    reason = "is a link; links are not followed"
                try:
                    content = None if reason else _read(file.open(info), info.compress_size, full)
                except UnreadableImage as error:
                    yield info.filename, error
                    continue
                except _BROKEN:
                    reason = "is damaged inside the archive"
                yield info.filename, UnreadableImage(full, reason) if reason or content is None else content
    except _BROKEN as error:
        raise UnreadableImage(path, "is a damaged archive: its directory cannot be read") from error


def _tar_members(path: Path, only: str = "") -> Iterator[Member]:
    packed = path.stat().st_size
    try:
        with _open_tar(path) as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.isdir() or (only and name != only):
                    continue
                full = f"{path}!{name}"
                reason = _unsafe(member.name) or ("" if member.isreg() else "is a link or a device, not a file")
                if reason:
                    yield name, UnreadableImage(full, reason)
                    continue
                try:
                    stream = tar.extractfile(member)
                    assert stream is not None
                    yield name, _read(stream, packed, full)
                except UnreadableImage as error:
                    yield name, error
    except _BROKEN:
        rest = f"{path}!(rest)"
        yield "(rest)", UnreadableImage(rest, "the archive is truncated or damaged here; what comes after is lost")


def _unsafe(name: str) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (len(name) > 1 and name[1] == ":"):
        return "has a path that leads out of the archive"
    return ""


def _read(stream: IO[bytes], packed: int, full: str) -> bytes:
    """All bytes of a member, counted while they come: what the archive declares is not believed."""
    limit = min(MAX_MEMBER, max(_ALLOWED_ANYWAY, MAX_RATIO * packed))
    chunks, total = [], 0
    with stream:
        while chunk := stream.read(_CHUNK):
            total += len(chunk)
            if total > limit:
                raise UnreadableImage(full, f"unpacks to more than {limit:,} bytes, as decompression bombs do")
            chunks.append(chunk)
    return b"".join(chunks)
