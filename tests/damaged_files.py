"""Damaged files: bit flips, truncations and foreign headers over every format that is read, each with a fixed seed.

Every file is read in a child process whose memory is limited, in batches, so that a crash of a decoder in C or a hang
is seen, and blamed on the file in which it happened.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
from made_files import dicom, picture, pyramid, tiled_dicom
from PIL import Image
from pydicom.data import get_testdata_file

from ssl_mednet.data.sources import open_source
from ssl_mednet.errors import DataError, UnreadableImage
from ssl_mednet.imaging.readers import ReadContext

SECONDS = 10  # for one file, on a machine that does other things too
MEMORY = 3 * 1024**3  # of address space beyond what the libraries take
LIMITS = ReadContext(max_pixels=2**24, tile=64)
KINDS = ("flip", "cut", "head", "splice")


def seeds() -> dict[str, bytes]:
    """A small good file of every format, by a name with its suffix."""
    rng = np.random.default_rng(0)
    gray, color = rng.integers(0, 256, (16, 16), dtype=np.uint8), rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    volume = rng.integers(0, 99, (6, 7, 4)).astype(np.int16)
    slide = picture(256)
    nifti = nibabel.Nifti1Image(volume, np.eye(4)).to_bytes()
    sparse = tiled_dicom(slide, 0.5, sparse=True, packed=True)
    return {
        "a.png": _pil(gray, "PNG"), "b.png": _pil(color, "PNG"), "c.png": _pil(gray.astype(np.uint16) * 257, "PNG"),
        "a.jpg": _pil(color, "JPEG"), "a.gif": _pil(gray, "GIF"), "a.bmp": _pil(gray, "BMP"),
        "a.webp": _pil(color, "WEBP"), "a.tif": _pil(gray, "TIFF"), "b.tif": _tiff(gray, compression="zlib"),
        "c.tif": _tiff(color, compression="lzw"), "d.tif": _tiff(color, compression="jpeg"),
        "a.svs": pyramid(slide, 0.5, compression="jpeg", description="Aperio |MPP = 0.5", software="Aperio"),
        "b.svs": pyramid(slide, 1.0, 2),
        "a.npy": _npy(gray), "a.npz": _npz(train_images=gray[None], train_labels=gray[:1, 0]),
        "a.nii": nifti, "b.nii.gz": gzip.compress(nifti), "a.mha": _mha(volume), "b.mha": _mha(volume, packed=True),
        "a.nrrd": _nrrd(volume, "raw"), "b.nrrd": _nrrd(volume, "gzip"),
        "a.dcm": dicom(gray), "b.dcm": dicom(np.stack([gray] * 3)), "c.dcm": dicom(color),
        "d.dcm": tiled_dicom(slide, 0.5), "e.dcm": sparse, "f.dcm": _pydicom("MR_small.dcm"),
        "g.dcm": _pydicom("MR_small_RLE.dcm"), "h.dcm": _pydicom("MR_small_jp2klossless.dcm"),
        "i.dcm": _pydicom("MR_small_jpeg_ls_lossless.dcm"), "j.dcm": _pydicom("JPGExtended.dcm"),
        "k.dcm": _pydicom("SC_rgb_jpeg_gdcm.dcm"), "l.dcm": _pydicom("SC_rgb_small_odd_jpeg.dcm"),
        "a.zip": _zip({"x/a.png": _pil(gray, "PNG"), "y/b.dcm": dicom(gray), "y/c.npy": _npy(gray)}),
        "a.tar": _tar({"x/a.png": _pil(gray, "PNG"), "y/b.jpg": _pil(color, "JPEG")}),
        "b.tar": _tar({"0.png": _pil(gray, "PNG"), "0.cls": b"1", "1.jpg": _pil(gray, "JPEG"), "1.json": b"2"}),
        "c.tar.gz": gzip.compress(_tar({"x/a.png": _pil(gray, "PNG"), "y/b.jpg": _pil(color, "JPEG")})),
        "a.parquet": _parquet(_pil(gray, "PNG")), "a.arrow": _arrow(_pil(gray, "PNG")),
    }  # fmt: skip


def mutated(number: int, files: dict[str, bytes]) -> tuple[str, bytes]:
    """The damaged file of a number: formats in turn, kinds of damage in turn, the rest by a generator of that seed."""
    names = sorted(files)
    name, kind = names[number % len(names)], KINDS[number // len(names) % len(KINDS)]
    rng = np.random.default_rng([20, number])
    data = bytearray(files[name])
    if kind == "flip":
        for _ in range(int(rng.integers(1, 24))):
            # Headers are where damage does most.
            reach = len(data) if rng.random() < 0.5 else min(len(data), 600)
            data[int(rng.integers(0, reach))] ^= 1 << int(rng.integers(0, 8))
    elif kind == "cut":
        data = data[: int(rng.integers(0, len(data)))]
    elif kind == "head":
        data[:64] = files[names[int(rng.integers(0, len(names)))]][:64]
    else:  # a stretch of it is overwritten by extreme numbers
        start, size = int(rng.integers(0, len(data))), int(rng.integers(1, 9))
        data[start : start + size] = bytes([int(rng.choice([0x00, 0x7F, 0x80, 0xFF]))]) * size
    return name, bytes(data)


def read_all(path: Path) -> str:
    """What becomes of a file as a source: ``images`` or ``refused``; any other exception is a fault of ours."""
    outcome = "refused"
    try:
        for item in open_source(path).items():
            try:
                for _ in item.images("ct", LIMITS):
                    outcome = "images"
            except UnreadableImage as error:
                if not (error.reason and error.path):
                    raise AssertionError("a refusal without path or reason") from error
    except DataError:
        return "refused"
    return outcome


def child(numbers: range, folder: Path) -> None:
    """Read these files; one line of JSON before each and one after it."""
    base = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (base + MEMORY, base + MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a hang in C ends here too: the process is killed
    files = seeds()
    for number in numbers:
        name, data = mutated(number, files)
        path = folder / name
        path.write_bytes(data)
        print(json.dumps({"start": number, "name": name}), flush=True)
        signal.alarm(SECONDS)
        began = time.monotonic()
        try:
            outcome = read_all(path)
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"[:300]
        signal.alarm(0)
        said = {"end": number, "outcome": outcome, "seconds": time.monotonic() - began, "peak_gb": peak_memory()}
        print(json.dumps(said), flush=True)
        path.unlink()


def peak_memory() -> float:
    """Most memory that this process had, GB; ``ru_maxrss`` would count that of whoever started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024**2


def run(count: int, first: int = 0) -> dict[str, object]:
    """Read ``count`` damaged files.

    Returns:
        ``images`` and ``refused`` (how many), ``faults`` (number, name, what happened), ``slowest`` (seconds),
        ``peak_gb`` (of the children).
    """
    tally: dict[str, int] = {"images": 0, "refused": 0}
    faults, slowest, peak, number = [], 0.0, 0.0, first
    while number < first + count:
        numbers = range(number, first + count)
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, str(numbers.start), str(numbers.stop), folder]
            path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if not lines:
            raise RuntimeError(f"the child did not start: {done.stderr[-2000:]}")
        name = ""
        for line in lines:
            if "start" in line:
                name = line["name"]
                continue
            slowest, peak = max(slowest, line["seconds"]), max(peak, line["peak_gb"])
            if line["outcome"] in tally:
                tally[line["outcome"]] += 1
            else:
                faults.append((line["end"], name, line["outcome"]))
        number = lines[-1].get("end", lines[-1].get("start")) + 1
        if "start" in lines[-1]:  # it did not come back from this one
            faults.append((lines[-1]["start"], name, f"the process ended: {done.returncode} {done.stderr[-300:]}"))
    return {**tally, "faults": faults, "slowest": round(slowest, 2), "peak_gb": round(peak, 2)}


def _pil(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _tiff(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def _npy(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return buffer.getvalue()


def _npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _mha(volume: np.ndarray, packed: bool = False) -> bytes:
    head = (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = {packed}\nElementSpacing = 1 1 3\n"
        f"DimSize = {' '.join(map(str, volume.shape))}\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    numbers = volume.tobytes(order="F")
    return head.encode() + (zlib.compress(numbers) if packed else numbers)


def _nrrd(volume: np.ndarray, encoding: str) -> bytes:
    head = (
        f"NRRD0004\ntype: short\ndimension: 3\nsizes: {' '.join(map(str, volume.shape))}\nendian: little\n"
        f"space directions: (1,0,0) (0,1,0) (0,0,3)\nencoding: {encoding}\n\n"
    )
    numbers = volume.tobytes(order="F")
    return head.encode() + (gzip.compress(numbers) if encoding == "gzip" else numbers)


def _pydicom(name: str) -> bytes:
    return Path(get_testdata_file(name, download=False)).read_bytes()


def _zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _table(image: bytes) -> pa.Table:
    return pa.Table.from_pylist([{"image": {"bytes": image, "path": "a.png"}, "label": n} for n in range(3)])


def _parquet(image: bytes) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(_table(image), buffer)
    return buffer.getvalue()


def _arrow(image: bytes) -> bytes:
    buffer, table = io.BytesIO(), _table(image)
    with pa.ipc.new_stream(buffer, table.schema) as out:
        out.write_table(table)
    return buffer.getvalue()


if __name__ == "__main__":
    child(range(int(sys.argv[1]), int(sys.argv[2])), Path(sys.argv[3]))
