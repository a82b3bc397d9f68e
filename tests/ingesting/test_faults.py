"""What goes wrong on the way: crashes, hangs, kills, a full disk. The corpus is whole, or the one before."""

from __future__ import annotations

import csv
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ingest_helpers import TrapSource, numbers, same_content, table, write_pictures

from ssl_mednet.data.corpus import Corpus, CorpusSpec, open_corpus
from ssl_mednet.data.schema import WORK, is_corpus
from ssl_mednet.data.sources import open_sources
from ssl_mednet.errors import DataError, IngestError
from ssl_mednet.ingesting import hands
from ssl_mednet.ingesting.chunks import Chunk, Job, chunks
from ssl_mednet.ingesting.rows import Record
from ssl_mednet.ingesting.run import Way, ingest, ingest_opened

GRAY = CorpusSpec("gray", 64)


def levels(folder: Path) -> list[int]:
    return [data[0] for data in table(folder)["image"].to_pylist()]


def reasons(folder: Path) -> dict[str, str]:
    with (folder / "quarantine.csv").open(newline="") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def test_a_crash_in_a_decoder_loses_that_file_only(tmp_path: Path) -> None:
    contents = [f"good|{i}" for i in range(300)]
    for i in (0, 7, 8, 150, 299):
        contents[i] = f"crash|{i}"
    summary = ingest_opened([TrapSource(contents)], tmp_path / "out", GRAY, quiet=True)
    good = [i for i in range(300) if contents[i].startswith("good")]
    assert levels(summary.folder) == [i % 251 for i in good]
    assert set(reasons(summary.folder)) == {f"traps:{i}" for i in (0, 7, 8, 150, 299)}
    assert all("crash" in reason for reason in reasons(summary.folder).values())


def test_a_reader_that_hangs_is_ended_and_the_others_go_on(tmp_path: Path) -> None:
    contents = ["good|1", "hang|2", "good|3", "good|4"]
    began = time.monotonic()
    summary = ingest_opened([TrapSource(contents)], tmp_path / "out", GRAY, way=Way(timeout=1.5), quiet=True)
    assert time.monotonic() - began < 90
    assert levels(summary.folder) == [1, 3, 4]
    assert reasons(summary.folder) == {"traps:1": "its reader gave nothing for 1.5 s"}


def test_a_failure_that_has_passed_is_not_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = ["good|1", "slow|2", f"shut|{tmp_path / 'key'}|3", "crash|4"]
    out = tmp_path / "out"

    def run(timeout: float) -> tuple[bool, int]:
        summary = ingest_opened([TrapSource(contents)], out, GRAY, way=Way(timeout=timeout), quiet=True)
        return summary.already, summary.total

    ingest(write_pictures(tmp_path / "other", 2), out, quiet=True)
    assert run(1.5) == (False, 3)
    assert run(1.5) == (True, 3)
    (tmp_path / "key").touch()
    monkeypatch.setattr("ssl_mednet.ingesting.run._settle", lambda *_: None)  # killed before the list is written
    assert run(1.5) == (False, 4)
    monkeypatch.undo()
    assert len(reasons(out)) == 3
    assert run(1.5) == (True, 4)
    assert set(reasons(out)) == {"traps:1", "traps:3"}
    assert run(60) == (False, 5)
    assert run(60) == run(90) == (True, 5)
    assert levels(out)[2:] == [1, 3, 2]
    assert set(reasons(out)) == {"traps:3"}
    assert Corpus(out).meta["skipped"] == 1


def test_a_cached_corpus_takes_up_what_could_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_MEDNET_CACHE", str(tmp_path / "cache"))
    traps = TrapSource(["good|1", f"shut|{tmp_path / 'key'}|2", "crash|3"])
    monkeypatch.setattr("ssl_mednet.data.corpus.open_sources", lambda _: [traps])
    assert len(open_corpus("traps:", GRAY, quiet=True)) == 1
    (tmp_path / "key").touch()
    assert len(open_corpus("traps:", GRAY, quiet=True)) == 2
    with monkeypatch.context() as patched:
        patched.setattr("ssl_mednet.ingesting.run.ingest_opened", None)  # nothing is left to be done
        corpus = open_corpus("traps:", GRAY, quiet=True)
    assert set(reasons(corpus.folder)) == {"traps:2"}
    assert corpus.meta["skipped"] == 1


def test_a_worker_that_is_killed_from_outside_costs_no_file(tmp_path: Path) -> None:
    contents = [f"good|{i}" for i in range(40)]
    contents[20] = f"once|{tmp_path / 'killed'}|20"
    summary = ingest_opened([TrapSource(contents)], tmp_path / "out", GRAY, quiet=True)
    assert (tmp_path / "killed").exists()
    assert levels(summary.folder) == list(range(40))
    assert summary.quarantined == 0


_RUN = """
import signal, sys
from ssl_mednet.ingesting.run import ingest
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background of a shell ignores
print("begins", flush=True)
ingest(sys.argv[1], sys.argv[2], quiet=True)
"""


def _start(source: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _RUN, str(source), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# When to kill an ingest, and up to how many seconds later: before the first new piece, after one, after the last.
_MOMENTS = {"listing": 0.6, "working": 0.3, "commit": 0.03}


def _killed(source: Path, out: Path, moment: str, draw: random.Random) -> bool:
    """Kill an ingest at a moment; whether it was running then."""
    committed = {i["key"] for i in Corpus(out).meta["ingests"]} if is_corpus(out) else set()

    def pieces() -> int:
        return sum(path.parent.name not in committed for path in out.glob(f"{WORK}/*/*.json"))

    every = len([*chunks(open_sources(source))])
    wanted = {"listing": 0, "working": min(pieces() + 1, every), "commit": every}[moment]
    with _start(source, out) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begins\n"
        deadline = time.monotonic() + 120
        while pieces() < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, _MOMENTS[moment]))
        process.send_signal(signal.SIGKILL)
    return process.returncode == -signal.SIGKILL


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    process = _start(write_pictures(tmp_path / "set", 1500), tmp_path / "out")
    children: list[int] = []
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob(f"{WORK}/*/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    for tasks in Path(f"/proc/{process.pid}/task").glob("*/children"):
        children += map(int, tasks.read_text().split())
    workers = [c for c in children if b"LokyProcess" in Path(f"/proc/{c}/cmdline").read_bytes()]
    assert workers
    process.kill()
    process.communicate()
    while any(Path(f"/proc/{w}").exists() for w in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{w}").exists() for w in workers)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_and_run_again_every_image_is_there_once(kills: int, tmp_path: Path) -> None:
    out, draw, landed = tmp_path / "out", random.Random(kills), Counter[str]()
    sets: list[Path] = []
    done = tries = 0
    while landed.total() < kills:
        tries += 1
        assert tries <= 4 * kills, landed
        if done == len(sets):
            sets.append(write_pictures(tmp_path / f"set{done}", 1200))
            (sets[done] / "00500.png").write_bytes(b"broken")
        moment = [*_MOMENTS][landed.total() % len(_MOMENTS)]
        landed[moment] += _killed(sets[done], out, moment, draw)
        if is_corpus(out):
            corpus = Corpus(out)
            done = len(corpus.meta["ingests"])
            assert len(corpus) == 1199 * done
    assert min(landed[moment] for moment in _MOMENTS) >= kills // len(_MOMENTS)
    for source in sets:
        ingest(source, out, quiet=True)
        ingest(source, tmp_path / "undisturbed", quiet=True)
    good = [i for i in range(1200) if i != 500]
    assert numbers(out) == good * len(sets)
    assert same_content(out, tmp_path / "undisturbed")
    one, other = (Corpus(tmp_path / name) for name in ("out", "undisturbed"))
    assert one.meta == other.meta
    count = len(list((tmp_path / "undisturbed" / "data").iterdir()))
    assert len(list((out / "data").iterdir())) == count  # no orphans


def test_a_kill_between_commit_and_end_is_not_a_second_ingest(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssl_mednet.ingesting.journal import Journal

    def killed(self: Journal) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "clear", killed)
    with pytest.raises(KeyboardInterrupt):
        ingest(pictures, tmp_path / "out", quiet=True)
    monkeypatch.undo()
    assert ingest(pictures, tmp_path / "out", quiet=True).already
    assert numbers(tmp_path / "out") == list(range(700))


def test_an_append_that_is_stopped_leaves_the_corpus_as_it_was(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssl_mednet.ingesting import run

    out = tmp_path / "out"
    first = ingest(write_pictures(tmp_path / "few", 5), out, quiet=True)

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ingest(pictures, out, quiet=True)
    monkeypatch.undo()
    assert numbers(out) == list(range(5))
    assert Corpus(out).meta["fingerprint"] == first.fingerprint
    ingest(pictures, out, quiet=True)
    assert numbers(out) == [*range(5), *range(700)]


def test_what_is_done_is_not_done_again_and_what_nobody_took_up_goes(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lance.fragment import write_fragments

    from ssl_mednet.ingesting import run

    asked: list[int] = []
    engine = run.run

    def stops_after_two(name: str, job: Job, chunks: Iterator[Chunk], *where: Any) -> Iterator[Record]:
        def counted() -> Iterator[Chunk]:
            for chunk in chunks:
                asked.append(chunk.number)
                yield chunk

        records = engine(name, job, counted(), *where)
        yield from itertools.islice(records, 2)
        if len(asked) < 4:
            raise KeyboardInterrupt
        yield from records

    monkeypatch.setattr(run, "run", stops_after_two)
    with pytest.raises(KeyboardInterrupt):
        ingest(pictures, tmp_path / "out", workers=1, quiet=True)
    done = {int(path.stem) for path in (tmp_path / "out").glob(f"{WORK}/*/*.json")}
    assert len(done) == 2
    write_fragments(table(ingest("phantoms:gray?n=5", tmp_path / "x", quiet=True).folder), str(tmp_path / "out"))
    before = len(list((tmp_path / "out" / "data").iterdir()))
    asked[:] = [9, 9, 9]
    ingest(pictures, tmp_path / "out", workers=1, quiet=True)
    assert asked[3:] == [number for number in range(3) if number not in done]
    assert numbers(tmp_path / "out") == list(range(700))
    assert len(list((tmp_path / "out" / "data").iterdir())) == 3 < before + 1


def test_ctrl_c_ends_soon_and_the_next_run_goes_on(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "set", 20_000)  # some seconds of work, so that it is still on when stopped
    process = _start(source, tmp_path / "out")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob(f"{WORK}/*/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert b"KeyboardInterrupt" in errors
    assert process.returncode != 0
    done = len(list((tmp_path / "out").glob(f"{WORK}/*/*.json")))
    assert done >= 1
    ingest(source, tmp_path / "out", quiet=True)
    assert numbers(tmp_path / "out") == list(range(20_000))


def test_who_waits_for_work_that_was_ended_waits_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that is shut down while its thread begins leaves futures that nobody will ever finish."""

    class Mute:
        def __init__(self, **settings: object) -> None: ...

        def submit(self, *work: object) -> Future[None]:
            return Future()

        def shutdown(self, **how: object) -> None: ...

    monkeypatch.setattr(hands, "ProcessPoolExecutor", Mute)
    job = Job("nowhere", CorpusSpec("gray", 32), (), b"", 600.0)
    hand, said = hands.Hand(), []

    def work() -> None:
        with pytest.raises(IngestError) as caught:
            hand.work(job, Chunk(0, 0, ()))
        said.append(caught.value.hint)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    time.sleep(0.3)
    hand.close()
    thread.join(timeout=20)
    assert said == ["the work was ended"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield disk  # type: ignore[misc]
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_told_and_what_was_there_stays(small_disk: Path, tmp_path: Path) -> None:
    out = small_disk / "corpus"
    first = ingest(write_pictures(tmp_path / "few", 20), out, quiet=True)
    noise = tmp_path / "noise"
    noise.mkdir()
    for i in range(900):
        np.save(noise / f"{i:04d}.npy", np.random.default_rng(i).integers(0, 256, (64, 64), dtype=np.uint8))
    with pytest.raises(DataError, match="the disk is full"):
        ingest(noise, out, quiet=True)
    assert numbers(out) == list(range(20))
    assert Corpus(out).meta["fingerprint"] == first.fingerprint
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    assert ingest(noise, out, quiet=True).total == 920


def test_lines_of_the_list_that_are_none_do_not_end_an_ingest(tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = write_pictures(tmp_path / "set", 2)
    (source / "bad.png").write_bytes(b"no image")
    ingest(source, out, quiet=True)
    with (out / "quarantine.csv").open("a") as file:
        file.write("\nmine.png,by hand,\n\na line\n")
    assert ingest(write_pictures(tmp_path / "more", 3), out, quiet=True).total == 5
    assert set(reasons(out)) == {str(source / "bad.png"), "mine.png"}


def test_two_at_once_wait_for_each_other(pictures: Path, tmp_path: Path) -> None:
    processes = [_start(pictures, tmp_path / "out") for _ in range(2)]
    assert [p.wait(timeout=120) for p in processes] == [0, 0]
    assert numbers(tmp_path / "out") == list(range(700))
    for process in processes:
        process.communicate()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        ingest("phantoms:gray?n=3", tmp_path / "file", quiet=True)


def test_a_process_forked_from_a_reader_is_refused_and_does_not_crash(tmp_path: Path) -> None:
    corpus = Corpus(ingest(write_pictures(tmp_path / "set", 5), tmp_path / "out", quiet=True).folder)
    said, says = os.pipe()
    if (child := os.fork()) == 0:
        words = []
        for use in (lambda: corpus.batch(np.arange(2)), lambda: Corpus(corpus.folder)):
            try:
                use()
                words.append("read")
            except DataError as error:
                words.append(error.message)
        os.write(says, "|".join(words).encode())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(said, 1000).decode() == "|".join(["a corpus cannot be read in a forked process"] * 2)
    assert len(corpus.batch(np.arange(2))) == 2


def test_a_corpus_opens_itself_in_a_process_that_was_spawned(tmp_path: Path) -> None:
    from joblib.externals.loky import get_reusable_executor

    corpus = Corpus(ingest(write_pictures(tmp_path / "set", 5), tmp_path / "out", quiet=True).folder)
    there = get_reusable_executor(max_workers=1).submit(corpus.batch, np.array([4, 1])).result()
    assert there.pixels.equal(corpus.batch(np.array([4, 1])).pixels)
