"""How fast a corpus is made and read.

    python tests/benchmarks/corpus.py [--rows 100000] [--files 6000] [--scans 300] [--curve] [--folder DIR]

``ingest_per_s``: small JPEG and PNG files end to end, from the folder to the committed corpus, without and with the
start of the workers (``ingest_cold_per_s``). ``dicom_per_s``: CT slices of 512 x 512, 16 bit, uncompressed, stored at
the default size in Hounsfield units. The rest is measured in a process of its own on a corpus of ``--rows`` JPEG rows
of 64 px and about 1.2 KB, no two alike: ``open_s``, ``rss_gb`` (most memory while it streams, torch included),
``random_per_s`` (decoded images in random order through the batch stream) and ``epoch_s`` (until the first batch of the
next epoch). ``--curve`` does that for 10^4, 10^5, 10^6 and 3x10^6 rows (4 GB of disk); ``write_us`` and ``read_us``
are the cost of an image at each. The bars are those of two idle cores. The last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ssl_mednet.data.schema import JPEG, schema
from ssl_mednet.imaging import phantoms

CURVE = (10_000, 100_000, 1_000_000, 3_000_000)
BARS = {"ingest_per_s": 1500, "dicom_per_s": 150, "open_s": 2.0, "rss_gb": 1.0, "random_per_s": 20_000, "epoch_s": 1.0}
FRAGMENT, SECONDS, BATCH = 4096, 10.0, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--files", type=int, default=6000)
    parser.add_argument("--scans", type=int, default=300)
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--folder", help="where to work; a temporary folder by default")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure)))
        return
    work = Path(tempfile.mkdtemp(prefix="ssl-mednet-bench-", dir=given.folder))
    try:
        figures = ingest_figures(work, given.files, given.scans)
        curve = [read_figures(work, rows) for rows in (CURVE if given.curve else (given.rows,))]
    finally:
        shutil.rmtree(work, ignore_errors=True)
    figures |= curve[-1] | ({"curve": curve} if given.curve else {})
    for one in curve:
        print("  ".join(f"{name} {value:,.4g}" for name, value in one.items()))
    for name, bar in BARS.items():
        print(f"{name:14} {figures[name]:>12,.2f}   bar {bar:,}")
    print(json.dumps(figures))


def ingest_figures(work: Path, files: int, scans: int) -> dict[str, float]:
    from ssl_mednet.ingesting.run import ingest

    write_pictures(work / "pictures", files)
    write_scans(work / "scans", scans)
    seconds = {}
    for name, source in (("cold", "pictures"), ("warm", "pictures"), ("dicom", "scans")):
        began = time.perf_counter()
        summary = ingest(work / source, work / name, quiet=True)
        seconds[name] = time.perf_counter() - began
        assert summary.images == (scans if name == "dicom" else files), summary
    return {
        "ingest_per_s": files / seconds["warm"],
        "ingest_cold_per_s": files / seconds["cold"],
        "dicom_per_s": scans / seconds["dicom"],
    }


def write_pictures(folder: Path, count: int) -> None:
    """JPEG and PNG files of 64 px in turn."""
    folder.mkdir()
    base = [_shown(i) for i in range(200)]
    for i in range(count):
        picture = Image.fromarray(np.roll(base[i % 200], i // 200, axis=1))
        picture.save(folder / (f"{i:06d}.png" if i % 2 else f"{i:06d}.jpg"))


def write_scans(folder: Path, count: int) -> None:
    """CT slices as scanners write them: 512 x 512, 12 of 16 bits used, with noise."""
    import pydicom
    from pydicom.data import get_testdata_file

    folder.mkdir()
    scan = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    noise = np.random.default_rng(0)
    base = np.kron(scan.pixel_array, np.ones((4, 4))) + noise.normal(0, 8, (512, 512))
    scan.Rows = scan.Columns = 512
    for i in range(count):
        values = np.clip(np.roll(base, 7 * i, axis=0), 0, 4095).astype(np.int16)
        scan.PixelData, scan.InstanceNumber, scan.PatientID = values.tobytes(), i, f"patient {i // 40}"
        scan.save_as(folder / f"{i:05d}.dcm")


def _shown(index: int) -> np.ndarray:
    return np.rint(phantoms.phantom("gray", index, 64, 0).image.unit()[..., 0] * 255).astype(np.uint8)


def read_figures(work: Path, rows: int) -> dict[str, float]:
    began = time.perf_counter()
    write_corpus(work / "corpus", rows)
    seconds = time.perf_counter() - began
    command = [sys.executable, __file__, "--measure", str(work / "corpus")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    shutil.rmtree(work / "corpus")
    return {"rows": rows, "write_us": 1e6 * seconds / rows, **json.loads(done.stdout.splitlines()[-1])}


def write_corpus(folder: Path, rows: int) -> None:
    """Rows straight into fragments, 4096 each as ingest writes them for large sources, and one commit."""
    from lance.fragment import write_fragments

    from ssl_mednet.ingesting.commit import Ingest, commit
    from ssl_mednet.ingesting.rows import Record

    folder.mkdir()
    data = []
    for i in range(1000):
        buffer = io.BytesIO()
        Image.fromarray(_shown(i)).save(buffer, "JPEG", quality=82)
        data.append(buffer.getvalue())
    records, columns = [], schema("gray")
    for number, start in enumerate(range(0, rows, FRAGMENT)):
        part = _rows(data, start, min(FRAGMENT, rows - start), columns)
        written = write_fragments(part, str(folder), schema=columns, mode="overwrite")
        records.append(Record(number, len(part), len(part), [f.to_json() for f in written]))
    commit(folder, "gray", records, Ingest("bench", "bench", "", "", (), False, 82))


def _rows(data: list[bytes], start: int, count: int, columns: pa.Schema) -> pa.Table:
    random = np.random.default_rng(start)
    number = np.arange(start, start + count)
    # What follows the end of a JPEG is ignored by decoders: it makes every row different.
    image = [data[i % len(data)] + int(i).to_bytes(8, "big") for i in number]
    words: dict[str, Any] = {"quantity": "intensity", "source": "bench", "licence": "", "label": None}
    small = {"codec": JPEG, "modality": 2, "channels": 1, "height": 64, "width": 64, "bits": 8, "index": 0, "flags": 0}
    same = words | small | {"split": -1, "volume": -1}
    values: dict[str, Any] = {name: [value] * count for name, value in same.items()}
    values |= {"image": image, "group": number // 20, "phash": random.integers(0, 2**63, count)}
    values["sha256"] = [random.bytes(32) for _ in range(count)]
    values["window"] = np.tile(np.float32([0, 255]), (count, 1)).tolist()
    values["moments"] = random.random((count, 2), dtype=np.float32).tolist()
    return pa.table({f.name: pa.array(values[f.name], f.type) for f in columns}, schema=columns)


def measure(folder: str) -> dict[str, float]:
    from ssl_mednet.data.corpus import Corpus
    from ssl_mednet.data.loader import BatchStream

    began = time.perf_counter()
    corpus = Corpus(folder)
    opened = time.perf_counter() - began
    rows = corpus.rows()
    corpus.statistics(rows)
    stream = BatchStream(corpus, rows, BATCH, seed=0)
    batches = iter(stream)
    next(batches)
    began, images = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS:
        images += len(next(batches)[1])
    rate = images / (time.perf_counter() - began)
    batches.close()  # type: ignore[attr-defined]
    stream.start = -(-len(rows) // BATCH) + 1
    began = time.perf_counter()
    next(iter(stream))
    epoch = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    read = 1e6 / rate
    return {"open_s": opened, "rss_gb": memory, "random_per_s": rate, "read_us": read, "epoch_s": epoch}


if __name__ == "__main__":
    main()
