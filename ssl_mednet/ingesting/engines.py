"""Where the work is done: processes of this machine, or the tasks of a Ray or Dask cluster.

The work is the same function everywhere, and on every machine a child process of the worker opens the files: a file
that crashes a decoder costs a child and not a worker. A worker that is lost with its machine is the cluster's own
business: its tasks run again elsewhere. joblib's Ray and Dask backends hand such a loss to the caller and give up all
that is in flight with it, so the tasks are used directly.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import chain, islice
from typing import Any
from urllib.parse import urlsplit

from ssl_mednet.errors import IngestError, did_you_mean
from ssl_mednet.ingesting.chunks import Chunk, Job
from ssl_mednet.ingesting.hands import give_back, take_hand, work_safely
from ssl_mednet.ingesting.rows import Record, write_rows

_ATTEMPTS = 10  # times that a cluster may lose the worker of one task
_KNOCK = 5.0  # seconds that a cluster may take to accept a connection
Engine = Callable[[Job, Iterator[Chunk], int, str], Iterator[Record]]


def run(engine: str, job: Job, chunks: Iterator[Chunk], workers: int, address: str) -> Iterator[Record]:
    """A record for every chunk, as they are done; never more than a few chunks are held at a time.

    Args:
        engine: one of ``ENGINES``.
        workers: processes on this machine, 0 for one a core; a cluster that is there has its own number.
        address: of a cluster; empty starts one on this machine.

    Raises:
        IngestError: no such engine, or it is not installed, or no cluster answers.
    """
    if engine not in ENGINES:
        raise IngestError(f"unknown engine {engine!r}", did_you_mean(engine, ENGINES) or f"one of {', '.join(ENGINES)}")
    if address and engine == "loky":
        raise IngestError(
            f"the engine loky works on this machine and has no address ({address})", "--engine ray or dask"
        )
    return ENGINES[engine](job, chunks, workers or os.cpu_count() or 1, address)


def _windowed(
    chunks: Iterator[Chunk],
    submit: Callable[[Chunk], Any],
    some: Callable[[list[Any]], tuple[list[Any], list[Any]]],
    result: Callable[[Any], Record],
    window: int,
) -> Iterator[Record]:
    """Submit chunks as long as fewer than ``window`` are in flight; ``some`` waits for one and tells done from not."""
    pending: list[Any] = []
    for chunk in chain(chunks, [None] * window):
        while pending and (chunk is None or len(pending) >= window):
            done, pending = some(pending)
            yield from map(result, done)
        if chunk is not None:
            pending.append(submit(chunk))


def _loky(job: Job, chunks: Iterator[Chunk], workers: int, address: str) -> Iterator[Record]:
    first = list(islice(chunks, 2))
    chunks = chain(first, chunks)
    if len(first) == 1 and not first[0].needs_decoding:
        yield write_rows(job, first[0], beat=lambda item: None)  # a few arrays or phantoms are not worth a process
        return
    hands = [take_hand() for _ in range(workers)]
    free = list(hands)

    def work(chunk: Chunk) -> Record:
        hand = free.pop()
        try:
            return hand.work(job, chunk)
        finally:
            free.append(hand)

    def some(pending: list[Any]) -> tuple[list[Any], list[Any]]:
        done, rest = wait(pending, return_when=FIRST_COMPLETED)
        return list(done), list(rest)

    threads = ThreadPoolExecutor(workers, thread_name_prefix="ingest")
    try:
        yield from _windowed(chunks, lambda c: threads.submit(work, c), some, lambda f: f.result(), 2 * workers)
    except BaseException:
        for hand in hands:
            hand.close()
        raise
    finally:
        threads.shutdown(cancel_futures=True)
        for hand in hands:
            give_back(hand)


def _knock(kind: str, address: str) -> None:
    """Refuse a host and port where nobody listens: Ray tries such an address for minutes."""
    try:
        where = urlsplit(address if "://" in address else f"//{address}")
        if where.hostname and where.port and where.scheme in ("", "ray", "tcp", "tls"):
            socket.create_connection((where.hostname, where.port), _KNOCK).close()
    except (OSError, ValueError) as error:
        raise IngestError(f"no {kind} cluster answers at {address}", str(error)) from error


def _ray(job: Job, chunks: Iterator[Chunk], workers: int, address: str) -> Iterator[Record]:
    try:
        import ray
    except ImportError as error:
        raise IngestError("the engine ray is not installed", 'pip install "ssl-mednet[ray]"') from error
    ours = not ray.is_initialized()
    if ours:
        _knock("Ray", address)
        where: dict[str, Any] = {"address": address} if address else {"num_cpus": workers, "address": "local"}
        try:
            ray.init(**where, include_dashboard=None if address else False, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise IngestError(f"no Ray cluster answers at {address or 'this machine'}", str(error)) from error
    task = ray.remote(work_safely).options(num_cpus=1, max_retries=_ATTEMPTS)
    shared = ray.put(job)
    window = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    try:
        yield from _windowed(chunks, lambda c: task.remote(shared, c), ray.wait, ray.get, window)
    finally:
        if ours:
            ray.shutdown()


def _dask(job: Job, chunks: Iterator[Chunk], workers: int, address: str) -> Iterator[Record]:
    try:
        import dask
        from distributed import Client, LocalCluster
        from distributed import wait as wait_for
    except ImportError as error:
        raise IngestError("the engine dask is not installed", 'pip install "ssl-mednet[dask]"') from error
    _knock("Dask", address)
    with dask.config.set({"distributed.scheduler.allowed-failures": _ATTEMPTS}):
        try:
            cluster = None if address else LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
            client = Client(address or cluster)
        except (OSError, TimeoutError, ValueError) as error:
            raise IngestError(f"no Dask cluster answers at {address}", str(error)) from error

    def some(pending: list[Any]) -> tuple[list[Any], list[Any]]:
        states = wait_for(pending, return_when="FIRST_COMPLETED")
        return list(states.done), list(states.not_done)

    window = 2 * max(1, sum(client.nthreads().values()))
    try:
        submit = lambda c: client.submit(_on_dask, job, c, pure=False)  # noqa: E731
        yield from _windowed(chunks, submit, some, lambda f: f.result(), window)
    finally:
        client.close()
        if cluster is not None:
            cluster.close()


def _on_dask(job: Job, chunk: Chunk) -> Record:
    # Dask marks its workers as daemons, which may have no children; ours end with their parent by themselves.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    return work_safely(job, chunk)


ENGINES: dict[str, Engine] = {"loky": _loky, "ray": _ray, "dask": _dask}
