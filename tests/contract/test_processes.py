"""Every registered method on 2 and 4 processes: gradients equal those of one process with the whole batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_mednet.methods import METHODS

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}  # relative
FOLDER = Path(__file__).parent
Errors = dict[tuple[str, str, int, str], dict[str, float]]

every = pytest.mark.parametrize(
    ("name", "kind", "world"),
    [(name, kind, w) for name in METHODS for kind in sorted(METHODS.get(name).backbone_kinds) for w in (2, 4)],
)


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> Errors:
    """Of all methods, of those that save memory, and of one that is wrong on purpose."""
    out = tmp_path_factory.mktemp("processes") / "errors.jsonl"
    paths = os.pathsep.join([str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(FOLDER / "many_processes.py"), str(out), "blocks_method", "wrong_method"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": paths}, timeout=150)
    lines = map(json.loads, out.read_text().splitlines())  # of several batches the last one counts
    return {(line.pop("method"), line.pop("kind"), line.pop("world"), line.pop("dtype")): line for line in lines}


@every
def test_gradients_are_those_of_one_process(name: str, kind: str, world: int, errors: Errors) -> None:
    reason = METHODS.get(name).across_processes
    if reason:
        pytest.skip(f"says that they are not: {reason}")
    check(name, kind, world, errors)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(
    ("name", "kind"), [("simclr_in_blocks", "cnn"), ("simclr_in_blocks", "vit"), ("simclr_in_chunks", "vit")]
)
def test_a_large_batch_in_small_memory_gathers_alike(name: str, kind: str, world: int, errors: Errors) -> None:
    check(name, kind, world, errors)


def check(name: str, kind: str, world: int, errors: Errors) -> None:
    for dtype, tolerance in TOLERANCE.items():
        found = errors[name, kind, world, dtype]
        assert found["gradients"] < tolerance
        assert found["parameter"] < 2 * tolerance  # of the worst single one
        assert found["buffers"] < 1e-5  # compared in float32, as some methods take their loss
        assert found["loss"] < 5e-5


def test_a_method_with_statistics_of_one_process_is_found(errors: Errors) -> None:
    found = [error for key, error in errors.items() if key[0] == "wrong_barlow_twins"]
    assert len(found) == 8  # two nets, two worlds, two precisions
    assert all(error["gradients"] > 0.1 for error in found)
