"""What an ingest has done so far: one small file a chunk, so that a killed one is taken up where it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ssl_mednet.data.schema import WORK
from ssl_mednet.files import write_json
from ssl_mednet.ingesting.rows import Record


class Journal:
    """Records of the chunks of one ingest, in a folder of the corpus that goes when they are committed.

    They name fragments, counts and what is quarantined; good files leave no name in them.

    Args:
        corpus: its folder.
        key: of this ingest: another source or other options have another journal.
    """

    def __init__(self, corpus: Path, key: str) -> None:
        self._all = corpus / WORK
        self._folder = self._all / key
        self._data = corpus / "data"
        self.done = dict(self._load())

    def _load(self) -> list[tuple[int, Record]]:
        records = [Record.from_json(json.loads(path.read_text())) for path in sorted(self._folder.glob("*.json"))]
        return [(record.number, record) for record in records if self._is_there(record)]

    def _is_there(self, record: Record) -> bool:
        files = [file for fragment in record.fragments for file in fragment["files"]]
        return all((self._data / file["path"]).is_file() for file in files)

    def add(self, record: Record) -> None:
        """Remember a chunk; it is on the disk when this returns."""
        write_json(self._folder / f"{record.number:08d}.json", record.to_json())
        self.done[record.number] = record

    def records(self) -> list[Record]:
        """All records in the order of the items."""
        return [self.done[number] for number in sorted(self.done)]

    def clear(self) -> None:
        """Forget everything, also what other ingests left that were killed and never taken up."""
        shutil.rmtree(self._all, ignore_errors=True)
