"""A method in a package of its own, installed with pip, trains from a recipe without touching ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPO = HERE.parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the plug-in is installed (beside, not into, the one that runs the tests)."""
    target = tmp_path_factory.mktemp("site")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(target),
    ]
    subprocess.run([*pip, str(HERE / "mednet_simsiam")], check=True)
    return os.environ | {"PYTHONPATH": str(target)}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ssl_mednet.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_it_trains_from_a_recipe(installed: dict[str, str], tmp_path: Path) -> None:
    listed = run(installed, "list", "methods")
    assert "simsiam  [cnn/vit] Two views predict each other" in listed.stdout
    trained = run(
        installed, "pretrain", "--recipe", str(HERE / "simsiam.yaml"), "--out", str(tmp_path / "run"), "--quiet"
    )
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "run" / "backbone" / "model.safetensors").is_file()
    packages = json.loads((tmp_path / "run" / "environment.json").read_text())["packages"]
    assert "mednet-simsiam" in {name.replace("_", "-") for name in packages}
    wrong = run(installed, "pretrain", "--recipe", str(HERE / "simsiam.yaml"), "method.hidden_dims=3")
    assert wrong.returncode == 2
    assert "did you mean 'hidden_dim'" in wrong.stderr


def test_without_the_package_the_method_is_unknown() -> None:
    refused = run(dict(os.environ), "pretrain", "--recipe", str(HERE / "simsiam.yaml"))
    assert refused.returncode == 2
    assert "unknown method 'simsiam'" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_readme_shows_this_very_file() -> None:
    source = (HERE / "mednet_simsiam" / "mednet_simsiam.py").read_text()
    assert source in (REPO / "README.md").read_text()
    assert len(source.splitlines()) <= 40
