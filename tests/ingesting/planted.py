"""Files of many kinds with a word of its own at every place where a person may be named."""

from __future__ import annotations

import io
import re
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import tifffile
from PIL import Image, PngImagePlugin
from pydicom.data import get_testdata_file
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

_TEXTS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
_READ_BY_IT = frozenset({"Modality", "PhotometricInterpretation", "SpecificCharacterSet", "SOPClassUID", "ImageType"})
_SEQUENCES = ("RequestAttributesSequence", "OtherPatientIDsSequence", "ReferencedStudySequence", "ContentSequence")
_META = b"ObjectType = Image\nNDims = 2\nDimSize = 40 40\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
_NRRD = b"NRRD0004\n# a comment\ntype: uchar\ndimension: 2\nsizes: 40 40\nencoding: raw\n\n"
# What all planted words look like; numbers stand alone where they are leaked.
_LOOKS = re.compile(
    rb"zq\d\dword\d{4}|1\.2\.9\d\d\.\d{8}|235959\.\d{6}|(?<![0-9a-z.])16\d{6}(?:235959)?(?![0-9])", re.IGNORECASE
)


class Planter:
    """Makes words, and finds them.

    Attributes:
        words: all that were made.
    """

    def __init__(self) -> None:
        self.words: set[str] = set()
        self._files = -1
        self._count = 0

    def next_file(self) -> None:
        self._files, self._count = self._files + 1, 0

    def word(self, vr: str = "LO") -> str:
        n, k = self._files, self._count
        self._count += 1
        made = {
            "UI": f"1.2.9{n:02d}.{k:04d}4242",
            "DA": f"16{n:02d}{k % 12 + 1:02d}{k % 28 + 1:02d}",
            "TM": f"235959.{n:02d}{k:04d}",
            "DT": f"16{n:02d}0101235959.{n:02d}{k:04d}",
        }.get(vr, f"ZQ{n:02d}WORD{k:04d}")
        self.words.add(made)
        return made

    def found(self, content: bytes) -> set[str]:
        """The words that are in it, in any case."""
        seen = {match.decode().upper() for match in _LOOKS.findall(content)}
        return seen & self.words


def dicom(planter: Planter, kind: str = "CT_small.dcm") -> Dataset:
    """A scan of pydicom's with words in every tag of the standard that holds text, a date, a time or a UID.

    Most UIDs break the rules for UIDs, of which pydicom warns.
    """
    planter.next_file()
    data = pydicom.dcmread(get_testdata_file(kind))
    for tag, (vr, _, _, retired, keyword) in DicomDictionary.items():
        texts = vr in _TEXTS or vr in ("UI", "DA", "TM", "DT")
        if texts and tag >> 16 not in (0, 2, 4) and keyword and not retired and keyword not in _READ_BY_IT:
            data.add_new(tag, vr, planter.word(vr))
    for keyword in _SEQUENCES:
        inner = Dataset()
        inner.PatientName, inner.TextValue, inner.StudyDate = planter.word(), planter.word(), planter.word("DA")
        setattr(data, keyword, [inner])
    block = data.private_block(0x0099, planter.word(), create=True)
    for i, vr in enumerate(("LO", "PN", "LT", "UI", "DA", "UN")):
        word = planter.word(vr)
        block.add_new(i, vr, word.encode() if vr == "UN" else word)
    bits = planter.word() * 200
    overlay = {0x10: ("US", data.Rows), 0x11: ("US", data.Columns), 0x3000: ("OW", bits[:2048].encode())}
    overlay |= {0x22: ("LO", planter.word()), 0x1500: ("LO", planter.word()), 0x4000: ("LT", planter.word())}
    for element, (vr, value) in overlay.items():
        data.add_new(0x60000000 + element, vr, value)
    meta = data.file_meta
    meta.MediaStorageSOPInstanceUID, meta.PrivateInformationCreatorUID = data.SOPInstanceUID, planter.word("UI")
    meta.PrivateInformation = planter.word().encode()
    for keyword in ("SourceApplicationEntityTitle", "SendingApplicationEntityTitle", "ImplementationVersionName"):
        setattr(meta, keyword, planter.word())
    data.preamble = planter.word().encode().ljust(128, b"\0")
    return data


def as_bytes(data: Dataset) -> bytes:
    buffer = io.BytesIO()
    data.save_as(buffer)
    return buffer.getvalue()


def good_files(planter: Planter, root: Path) -> int:
    """Files that can be read, each in a folder and under a name of words too; how many images they hold."""
    scans = [as_bytes(dicom(planter, kind)) for kind in ("CT_small.dcm", "MR_small.dcm") * 4]
    odd = dicom(planter)  # names of what its reader needs to know, which it does not know
    odd.Modality, odd.SpecificCharacterSet = planter.word("CS"), planter.word("CS")
    odd.WindowCenter, odd.WindowWidth, odd.VOILUTFunction = 40, 400, planter.word("CS")
    for content in [*scans, as_bytes(odd)]:
        _put(planter, root, ".dcm", content)
    planter.next_file()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    texts = PngImagePlugin.PngInfo()
    texts.add_text(planter.word(), planter.word())
    texts.add_itxt(planter.word(), planter.word())
    exif = Image.Exif()
    exif[0x010E], exif[0x013B], exif[0x0132] = planter.word(), planter.word(), planter.word("DA")
    buffers = [io.BytesIO() for _ in range(3)]
    Image.fromarray(pixels).save(buffers[0], "PNG", pnginfo=texts)
    Image.fromarray(pixels.T).save(buffers[1], "JPEG", exif=exif, comment=planter.word().encode())
    tifffile.imwrite(buffers[2], pixels[::-1], description=planter.word(), metadata=None, software=planter.word())
    for suffix, buffer in zip((".png", ".jpg", ".tif"), buffers, strict=True):
        _put(planter, root, suffix, buffer.getvalue())
    volume = nibabel.Nifti1Image(np.stack([pixels, pixels.T], axis=2).astype(np.int16), np.eye(4))
    for field in ("descrip", "aux_file", "intent_name"):
        volume.header[field] = planter.word().encode()
    _put(planter, root, ".nii", volume.to_bytes())
    header = f"Comment = {planter.word()}\n{planter.word()} = {planter.word()}\nElementDataFile = LOCAL\n"
    _put(planter, root, ".mha", _META.replace(b"ElementDataFile = LOCAL\n", header.encode()) + pixels.tobytes())
    return len(scans) + 1 + 3 + 2 + 1


def bad_files(planter: Planter, root: Path) -> set[str]:
    """Files that cannot be read, whatever is said of that; their names, which may be told."""
    good = as_bytes(dicom(planter))
    syntax = planter.word().encode()
    known = ExplicitVRLittleEndian.encode()
    files = {"cut.dcm": good[:-20000], "syntax.dcm": good.replace(known, syntax.ljust(len(known), b"1"), 1)}
    files["header.dcm"] = as_bytes(dicom(planter))[:1500]
    photometric, report = dicom(planter), dicom(planter)
    photometric.PhotometricInterpretation = planter.word("CS")
    photometric.BitsAllocated = 7
    del report.PixelData, report.Rows
    files |= {"photometric.dcm": as_bytes(photometric), "report.dcm": as_bytes(report)}
    planter.next_file()
    body = bytes(1600)
    files["type.mha"] = _META.replace(b"MET_UCHAR", planter.word().encode()) + body
    files["type.nrrd"] = _NRRD.replace(b"uchar", planter.word().encode()) + body
    files["encoding.nrrd"] = _NRRD.replace(b"raw", planter.word().encode()) + body
    fields = io.BytesIO()
    np.save(fields, np.zeros((8, 8), [(planter.word(), np.uint8)]))
    files["fields.npy"] = fields.getvalue()
    files["text.png"] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x08\0\0\0\x08\x08\0\0\0\0" + planter.word().encode()
    for name, content in files.items():
        (root / name).write_bytes(content)
    return files.keys()


def _put(planter: Planter, root: Path, suffix: str, content: bytes) -> None:
    path = root / planter.word() / f"{planter.word()}{suffix}"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
