"""The wheel: everything a user needs is in it, and names resolve from any directory."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ssl_mednet.shipped import list_shipped

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(REPO)]
    subprocess.run(build, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_package_recipes_and_suites_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    shipped = {n.removeprefix("ssl_mednet/_shipped/") for n in names if n.startswith("ssl_mednet/_shipped/")}
    assert {f"recipes/{r}" for r in list_shipped("recipes")} | {f"eval/{s}" for s in list_shipped("eval")} <= shipped
    data = [
        p
        for kind in ("j2", "css", "js", "yaml", "safetensors", "json")
        for p in (REPO / "ssl_mednet").rglob(f"*.{kind}")
    ]
    assert {p.relative_to(REPO).as_posix() for p in data} <= set(names)
    assert not [n for n in names if n.startswith("tests/") or n.endswith((".zip", ".dcm", ".pyc"))]
    assert any(n.endswith("licenses/LICENSE") for n in names)


def test_an_installed_wheel_finds_its_recipes_from_another_directory(wheel: Path, tmp_path: Path) -> None:
    """A venv of its own; the big dependencies are those of the environment that runs the tests."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet", str(wheel)]
    subprocess.run(install, check=True)
    site = next((venv / "lib").glob("python*/site-packages"))
    dependencies = next(p for p in sys.path if p.endswith("site-packages"))
    (site / "dependencies.pth").write_text(dependencies + "\n")  # behind the venv's own packages
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def run(*command: str) -> str:
        return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout

    where = run(str(python), "-c", "import ssl_mednet; print(ssl_mednet.__file__)")
    assert where.startswith(str(site))
    command = str(venv / "bin" / "ssl-mednet")
    assert "mae_gray.yaml" in run(command, "list", "recipes")
    assert "demo.yaml" in run(command, "list", "suites")
    code = "from ssl_mednet.recipe import load_recipe; print(load_recipe('simclr_color.yaml').name)"
    assert run(str(python), "-c", code).strip() == "simclr_color"
