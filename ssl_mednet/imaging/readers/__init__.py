"""Readers of medical and common image formats: a file or its bytes in, 2-D images out, or the reason why not.

The format is decided by the first bytes; the suffix only where they do not say it (DICOM without its preamble). Each
reader lives in its own module and is imported when its format is first met.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ssl_mednet.errors import UnreadableImage
from ssl_mednet.imaging.image import MAX_PIXELS, MedicalImage
from ssl_mednet.imaging.readers.silence import SILENCE

# fmt: off
SUFFIXES = frozenset({
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff",
    ".dcm", ".dicom", ".ima", ".nii", ".gz", ".npy", ".npz", ".mha", ".mhd", ".nrrd", ".nhdr",
    ".svs", ".ndpi", ".scn", ".bif", ".btf",
})
# What lies beside images: texts, tables, results, what a desktop leaves, the pixels of .mhd and .nhdr.
_TEXTS = frozenset({
    ".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".html", ".htm", ".yaml", ".yml", ".toml",
    ".ini", ".cfg", ".log", ".py", ".ipynb", ".sh", ".bat", ".url", ".lnk", ".db", ".sha256", ".md5", ".bval", ".bvec",
    ".doc", ".docx", ".xls", ".xlsx", ".ods", ".parquet", ".arrow", ".feather", ".raw", ".zraw",
})
# fmt: on
_NO_IMAGES = frozenset({"README", "LICENSE", "LICENCE", "NOTICE", "DICOMDIR", "Makefile", "VERSION", "CITATION"})
_VIDEOS = frozenset({".avi", ".mp4", ".m4v", ".mov", ".mkv", ".wmv", ".mpg", ".mpeg", ".webm"})
_ARCHIVES = frozenset({".zip", ".tar", ".tgz", ".tbz2", ".txz", ".bz2", ".xz", ".7z", ".rar"})
_HEAD = 4096
_META_KEY = re.compile(rb"\s*(ObjectType|NDims|Comment)\s*=")  # what a MetaImage header begins with
_SLIDE_CLASS = re.compile(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.77\.1\.6(?![\d.])")  # VL Whole Slide Microscopy
Content = Path | bytes | tuple[Path | bytes, ...]


@dataclass(frozen=True)
class ReadContext:
    """What the caller knows of a file.

    Args:
        modality: of images that do not say their own.
        name: what to call the file in messages; its path when empty.
        max_pixels: larger images (height x width x planes) are refused before they are decoded; of a slide, a tile.
        mpp: of slides, microns per pixel of the tiles. 0.5 is a 20x objective: cells and glands are seen, and nearly
            every public slide was scanned at least as fine.
        tile: of slides, height and width of a tile in pixels.
        max_tiles: of slides, how many tiles of one are taken at most, evenly spread; 0 takes all.
        min_tissue: of slides, the part of a tile that must be tissue, above 0 to 1.
        group_tag: of DICOM, the tag whose value is the group (see :mod:`.tags`); the patient when empty.
        most: of a file that holds several images, how many are taken at most, evenly spread; 0 takes all.
    """

    modality: str = ""
    name: str = ""
    max_pixels: int = MAX_PIXELS
    mpp: float = 0.5
    tile: int = 256
    max_tiles: int = 0
    min_tissue: float = 0.5
    group_tag: str = ""
    most: int = 0

    def chosen(self, count: int) -> list[int]:
        """Which of the ``count`` images of a file are taken: all, or ``most``, each from the middle of its share."""
        if not 0 < self.most < count:
            return [*range(count)]
        return [(2 * i + 1) * count // (2 * self.most) for i in range(self.most)]

    def fail(self, reason: str) -> UnreadableImage:
        return UnreadableImage(self.name, reason)

    def check_size(self, *shape: int) -> None:
        """Raise :class:`UnreadableImage` for an empty or an enormous picture, before memory is taken for it."""
        count = 1
        for side in shape:
            if side <= 0:
                raise self.fail("is empty: " + " x ".join(map(str, shape)) + " pixels")
            count *= int(side)
        if count > self.max_pixels:
            raise self.fail(f"is too large: {' x '.join(map(str, shape))} pixels, the limit is {self.max_pixels:,}")


def read(source: Content, ctx: ReadContext | None = None) -> Iterator[MedicalImage]:
    """Every 2-D image in a file: one for a picture, one a frame or slice for a cine, a stack or a volume.

    Args:
        source: path of the file, or its content, or several that are one thing (the levels of a DICOM slide).
        ctx: what else is known; ``name`` is set from the path where it is empty.

    Yields:
        Images at their native bit depth, in the order of the file.

    Raises:
        UnreadableImage: and nothing else, whatever the bytes are; images before the damage have been yielded.
    """
    ctx = ctx or ReadContext()
    if not ctx.name:
        name = str(source) if isinstance(source, Path) else str(source[0]) if isinstance(source, tuple) else "bytes"
        ctx = replace(ctx, name=name)
    try:
        head = _head(source)
        module = importlib.import_module(f"{__name__}.{format_of(ctx.name, head)}")
        with SILENCE:  # decoders warn of what the reader reports or repairs
            yield from module.read(source, ctx)
    except UnreadableImage:
        raise
    except MemoryError as error:
        raise ctx.fail("needs more memory than there is") from error
    except Exception as error:
        # Decoders raise everything from struct.error to RecursionError on broken bytes. Their text may quote tags with
        # names in them, so only the kind of error is told.
        raise ctx.fail(f"is damaged or not what it seems ({type(error).__name__})") from error


def format_of(name: str, head: bytes) -> str:
    """The reader's module for a file, from its first bytes (at least 600 where the file has them) and its name.

    Raises:
        UnreadableImage: empty, or of no format that is known here.
    """
    if not head:
        raise UnreadableImage(name, "is empty (0 bytes)")
    suffix = PurePosixPath(name.lower()).suffix
    if head[128:132] == b"DICM":
        return "slide_dicom" if _SLIDE_CLASS.search(head) else "dicom"
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM")) or head[8:12] == b"WEBP":
        return "raster"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head.startswith((b"\x93NUMPY", b"PK\x03\x04")) and (suffix == ".npz" or head[:1] == b"\x93"):
        return "array"
    if head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2") or name.lower().endswith((".nii", ".nii.gz")):
        return "nifti"
    if head.startswith(b"NRRD000") or _META_KEY.match(head):
        return "headed"
    if head.startswith(b"\x1f\x8b") and not suffix.startswith(".t"):
        return "packed"
    if head.startswith((b"PK\x03\x04", b"\x1f\x8b")):
        raise UnreadableImage(name, "is an archive inside the source; unpack it")
    if is_bare_dicom(head):
        return "dicom"
    if suffix in (".dcm", ".dicom", ".ima"):
        raise UnreadableImage(name, "is named as DICOM but does not begin as DICOM does")
    said = f", whatever its suffix {suffix} says" if suffix else ""
    raise UnreadableImage(name, passed_over(name) or f"is of no known image format{said}")


def is_bare_dicom(head: bytes) -> bool:
    """Whether this is DICOM without preamble: the first element is of group 0002 or 0008, in either byte order."""
    return head[:2] in (b"\x02\0", b"\x08\0") or head[:4] in (b"\0\x08\0\0", b"\0\x08\0\x05", b"\0\x08\0\x08")


def passed_over(name: str) -> str:
    """Why a file is not looked at that surely holds images, a video or an archive; empty for any other."""
    path = PurePosixPath(name.lower())
    if path.name.startswith(".") or "__macosx" in path.parts:
        return ""
    if path.suffix in _VIDEOS:
        return "is a video, which is not read; extract its frames first"
    return "is an archive inside the source; unpack it, or name it by itself" if path.suffix in _ARCHIVES else ""


def unknown_suffix(name: str) -> str:
    """Why a file is not looked at that may hold an image or not; empty for those that are looked at and for texts."""
    path = PurePosixPath(name.lower())
    hidden = path.name.startswith(".") or "__macosx" in path.parts
    if hidden or is_image_name(name) or passed_over(name) or path.suffix in _TEXTS or not path.suffix:
        return ""
    return f"is not looked at in a folder or archive for its suffix {path.suffix}; name the file by itself"


def is_image_name(name: str) -> bool:
    """Whether a file of this name is looked at at all: a known suffix, or none, as DICOM files often have."""
    path = PurePosixPath(name)
    if path.name.startswith(("._", ".")) or "__MACOSX" in path.parts:
        return False
    if path.suffix[1:].isdigit():
        return True  # files that are named by their UID
    return path.suffix.lower() in SUFFIXES or ("." not in path.name and path.name not in _NO_IMAGES)


def _head(source: Content) -> bytes:
    if isinstance(source, tuple):
        return _head(source[0])
    if isinstance(source, bytes):
        return source[:_HEAD]
    try:
        with source.open("rb") as file:
            return file.read(_HEAD)
    except IsADirectoryError as error:
        raise UnreadableImage(source, "is a folder") from error
    except OSError as error:
        raise UnreadableImage(source, f"cannot be opened: {error.strerror}") from error


def npz_splits(path: Path) -> dict:
    """Images and labels by split of an npz with MedMNIST's keys; see :func:`.array.splits`."""
    from ssl_mednet.imaging.readers.array import splits

    return splits(path)


for _noisy in ("pydicom", "tifffile", "nibabel", "PIL"):
    logging.getLogger(_noisy).setLevel(logging.CRITICAL)
