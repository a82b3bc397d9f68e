"""What the tests of the report share: one results folder, one pretraining run, and the report on both."""

from __future__ import annotations

from pathlib import Path

import pytest
from results_folder import write_results, write_run

from ssl_mednet.reporting.build import report


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return write_results(tmp_path_factory.mktemp("study") / "results")


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    return write_run(tmp_path_factory.mktemp("runs") / "gray")


@pytest.fixture(scope="session")
def written(results: Path, run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The report on both, and its tables."""
    return report([results, run_folder], tmp_path_factory.mktemp("out") / "sub" / "all.html")
