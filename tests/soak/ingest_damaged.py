"""Ingest thousands of damaged files at once: the corpus holds what each of them gives by itself, the rest is listed.

    python tests/soak/ingest_damaged.py [--files 2000] [--first 0]

The same files as ``mutations.py``, but for DICOM slides: copies of one would be taken for the levels of one. The last
line is JSON: ``files``, ``images`` (rows of the corpus), ``listed`` (files in ``quarantine.csv``), ``missing`` and
``extra`` (images that the corpus lacks or has too many), ``unaccounted`` (files that gave no image and are not listed),
``seconds``. The exit code is 1 if one of those three counts is above 0.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from damaged_files import mutated, seeds

from ssl_mednet.data.corpus import Corpus
from ssl_mednet.data.schema import CorpusSpec
from ssl_mednet.data.sources import open_source
from ssl_mednet.errors import DataError, UnreadableImage
from ssl_mednet.imaging.readers import ReadContext
from ssl_mednet.ingesting.hashes import pixel_hash
from ssl_mednet.ingesting.rows import fit
from ssl_mednet.ingesting.run import ingest

SLIDES = ("d.dcm", "e.dcm")
SPEC = CorpusSpec("gray", 64, "ct", convert=True, tile=64)


def alone(path: Path) -> Counter[str]:
    """Hashes of the images that a file gives when nothing else is read."""
    found: Counter[str] = Counter()
    try:
        for item in open_source(path).items():
            try:
                for image in item.images(SPEC.modality, ReadContext(tile=SPEC.tile)):
                    found[pixel_hash(fit(item.name, image, SPEC).pixels)] += 1
            except UnreadableImage:
                continue
    except DataError:
        pass
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        good, expected, paths = seeds(), Counter[str](), {}
        for number in range(options.first, options.first + options.files):
            name, data = mutated(number, good)
            if name in SLIDES:
                continue
            path = Path(work) / "set" / f"{number:05d}" / name
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
            paths[path] = alone(path)
            expected += paths[path]
        began = time.monotonic()
        glob = f"{work}/set/*/*"
        ingest(glob, Path(work) / "corpus", store_size=64, modality="ct", convert=True, tile=64, timeout=30)
        seconds = time.monotonic() - began
        with (Path(work) / "corpus" / "quarantine.csv").open(newline="") as file:
            listed = {re.split(r"!|\[\d", row["path"])[0] for row in csv.DictReader(file)}
        stored = Counter(Corpus(Path(work) / "corpus").column("sha256").to_pylist())
        unaccounted = [str(path) for path, images in paths.items() if not images and str(path) not in listed]
        print(*unaccounted, sep="\n")
        found = {
            "files": len(paths), "images": stored.total(), "listed": len(listed & set(map(str, paths))),
            "missing": (expected - stored).total(), "extra": (stored - expected).total(),
            "unaccounted": len(unaccounted), "seconds": round(seconds, 1),
        }  # fmt: skip
    print(json.dumps(found))
    return 1 if found["missing"] or found["extra"] or found["unaccounted"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
