"""A small index of IDC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssl_mednet.catalog import idc

Row = tuple[str, str, str, str, int, str]


def put_index(monkeypatch: pytest.MonkeyPatch, rows: list[Row]) -> None:
    """Make this the index of IDC: collection, patient, modality, licence, objects and address of each series."""
    collection, patient, modality, licence, count, url = map(list, zip(*rows, strict=True))
    table: dict[str, list[object]] = {
        "collection_id": collection,
        "PatientID": patient,
        "Modality": modality,
        "license_short_name": licence,
        "instanceCount": count,
        "analysis_result_id": [""] * len(rows),
        "SeriesDescription": [""] * len(rows),
        "sop_class_name": ["CT Image Storage"] * len(rows),
        "series_size_MB": [1.0] * len(rows),
        "SeriesInstanceUID": [f"1.{i}" for i in range(len(rows))],
        "series_aws_url": url,
    }
    columns = {k: np.array(v, object if isinstance(v[0], str) else None) for k, v in table.items()}

    def read(modalities: tuple[str, ...], path: Path | None = None) -> idc.Columns:
        kept = np.array([m in modalities for m in columns["Modality"]])
        return {k: v[kept] for k, v in columns.items()}

    monkeypatch.setattr(idc, "read_index", read)
