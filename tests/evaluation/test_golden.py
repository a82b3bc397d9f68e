"""Figures that were written down: a change of rules that moves them raises ``FORMAT``, so no old row is taken up."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_mednet import evaluate
from ssl_mednet.evaluation import results

# By FORMAT: AUROC, calibration error before and after the temperature from val, and what val chose.
WRITTEN: dict[int, dict[str, tuple[float, float | None, float | None, dict[str, float]]]] = {
    5: {
        "knn": (0.4387, 0.1672, 0.1004, {"k": 20, "temperature_of_calibration": 3.595}),
        "linear": (0.5670, 0.0754, 0.0550, {"strength": 0.01, "temperature_of_calibration": 3.112}),
        "few_shot_linear": (0.4311, None, None, {"strength": 0.01}),
        "few_shot_knn": (0.4307, None, None, {"k": 1}),
    }
}


def test_what_is_measured_is_what_was_written_down(tmp_path: Path) -> None:
    said = ["protocols=[knn,linear,few_shot_linear,few_shot_knn]", "shots=[5]", "draws=3", "resamples=20", "gallery=0"]
    said += ["image_size=32"]
    rows = evaluate(["baseline:pixels"], data="phantoms:gray?n=400", out=tmp_path, overrides=said, quiet=True).rows
    assert list(WRITTEN) == [results.FORMAT]
    for row in rows[1:]:
        auroc, before, after, chosen = WRITTEN[results.FORMAT][row["protocol"]]
        values = {name: metric["value"] for name, metric in row["metrics"].items()}
        assert values["auroc"] == pytest.approx(auroc, abs=0.005)
        if before is not None and after is not None:
            assert (values["ece"], values["ece_calibrated"]) == pytest.approx((before, after), abs=0.01)
        assert {name: row["chosen_on_val"][name] for name in chosen} == pytest.approx(chosen, rel=0.05)
