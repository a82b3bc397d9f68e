"""The same corpus from processes of one machine, a Ray cluster of two nodes that loses a worker, and Dask."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ingest_helpers import TrapSource, numbers, same_content, write_pictures

from ssl_mednet.data.corpus import CorpusSpec
from ssl_mednet.data.schema import WORK
from ssl_mednet.errors import DataError, IngestError
from ssl_mednet.ingesting.engines import ENGINES
from ssl_mednet.ingesting.run import Way, ingest, ingest_opened


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray cluster of two nodes with one core each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 * 2**20})
    cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    yield cluster.address
    cluster.shutdown()


def busy_ray_workers() -> list[int]:
    """Processes of Ray that are at one of our tasks; a worker is named after it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cmdline").read_bytes().startswith(b"ray::work_safely"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_ray_cluster_of_two_nodes_that_loses_a_worker_makes_the_same_corpus(two_nodes: str, tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "set", 2000)
    (source / "00777.png").write_bytes(b"broken")
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            if list((tmp_path / "ray").glob(f"{WORK}/*/*.json")) and (workers := busy_ray_workers()):
                os.kill(workers[0], signal.SIGKILL)
                killed.append(workers[0])
            time.sleep(0.02)

    killer = threading.Thread(target=kill_one)
    killer.start()
    there = ingest(source, tmp_path / "ray", engine="ray", address=two_nodes, quiet=True)
    killer.join()
    assert killed
    here = ingest(source, tmp_path / "loky", quiet=True)
    assert numbers(here.folder) == [i for i in range(2000) if i != 777]
    assert same_content(there.folder, here.folder)
    assert there.fingerprint == here.fingerprint


@pytest.mark.parametrize("engine", ["dask"])
def test_dask_makes_the_same_corpus_and_a_crash_costs_one_file(engine: str, tmp_path: Path) -> None:
    contents = [f"good|{i}" for i in range(300)]
    contents[33] = "crash|33"
    way = Way(engine=engine, workers=2)
    there = ingest_opened([TrapSource(contents)], tmp_path / engine, CorpusSpec("gray", 64), way=way, quiet=True)
    here = ingest_opened([TrapSource(contents)], tmp_path / "loky", CorpusSpec("gray", 64), quiet=True)
    assert (there.images, there.quarantined) == (299, 1)
    assert same_content(there.folder, here.folder)


@pytest.mark.parametrize("engine", ["ray", "dask"])
def test_an_engine_that_is_not_installed_says_what_to_install(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, {"ray": "ray", "dask": "distributed"}[engine], None)
    with pytest.raises(DataError, match=rf"pip install \"ssl-mednet\[{engine}\]\""):
        ingest("phantoms:gray?n=3", tmp_path / "out", engine=engine, quiet=True)
    assert engine in ENGINES


@pytest.mark.parametrize("engine", ["ray", "dask"])
@pytest.mark.parametrize("address", ["127.0.0.1:{}", "tcp://localhost:{}", "localhost:x{}", "no-such-host.invalid:{}"])
def test_an_address_where_nobody_listens_is_told_at_once(engine: str, address: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = address.format(probe.getsockname()[1])
    began = time.monotonic()
    with pytest.raises(IngestError, match=f"no {engine.capitalize()} cluster answers at {address}"):
        ingest("phantoms:gray?n=3", tmp_path / "corpus", engine=engine, address=address, quiet=True)
    assert time.monotonic() - began < 20
