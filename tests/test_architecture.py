"""The floors of the house: an import goes down or stays on its floor; heavy libraries wait until they are needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import ssl_mednet

PACKAGE = Path(ssl_mednet.__file__).parent
FLOORS = [
    {"cli", "__init__", "__main__"},
    {"reporting"},
    {"pretraining", "evaluation", "auditing", "classifying", "exporting", "contact_sheet", "listing", "doctor"},
    {"data", "ingesting", "catalog", "augment", "methods", "recipe", "schema"},
    {"imaging", "backbones", "probe", "registry", "shipped", "progress", "draws", "files"},
    {"errors"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {n.split(".")[1] for n in names if n.startswith("ssl_mednet.")}
    return found


def test_imports_go_down() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {target}"
        for path in PACKAGE.rglob("*.py")
        for target in imports_of(path)
        if LEVEL[target] < LEVEL[room_of(path)]
    ]
    assert wrong == []


def test_every_room_has_a_floor() -> None:
    assert {room_of(p) for p in PACKAGE.rglob("*.py")} == set(LEVEL)


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys, ssl_mednet.cli, ssl_mednet; assert not {'torch', 'timm', 'kornia', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
