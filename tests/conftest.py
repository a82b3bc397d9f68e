"""What the tests share: the folder of real images, a cache of their own, and quiet, single-purpose threads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# One process a core, one thread a process: two pools of threads on the same cores wait for each other. Before torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Decoded corpora go into a cache of this test run; sources used by several tests are decoded once."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["SSL_MEDNET_CACHE"] = str(folder)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test writes without saying where (runs/, results/) lands in its own folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The real image sets; tests that need them are skipped, with the reason, where they are absent."""
    root = Path(os.environ.get("SSL_MEDNET_DATA") or REPO.parent / "shared" / "data")
    if not (root / "mednist.zip").is_file():
        pytest.skip(f"no real image sets in {root}; set SSL_MEDNET_DATA to their folder")
    return root


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
