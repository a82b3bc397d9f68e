"""What the tests of ingest share."""

from __future__ import annotations

from pathlib import Path

import pytest
from ingest_helpers import write_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """700 pictures, which are three chunks."""
    return write_pictures(tmp_path_factory.mktemp("pictures") / "set", 700)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests say themselves which key groups have."""
    for name in ("SSL_MEDNET_GROUP_KEY", "SSL_MEDNET_GROUP_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
