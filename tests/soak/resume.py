"""Kill pretraining with -9 at random moments, resume it until it ends, and compare it with the run never stopped.

    python tests/soak/resume.py [--kills 20] [--processes 1 2] [--seed 0]

Gray and color times SimCLR, BYOL and MAE times the numbers of processes; the kills go round. Half of them come after a
random time, half at a random event: a write into a checkpoint, a rename, between update and checkpoint, between the
batches of one update, while the artifact is saved. Every tensor of the last checkpoint, the metrics, the pictures and
the artifact must have the same bits. The last line is JSON: ``kills`` (that hit a running run), ``bit_equal``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pretraining"))

from killed import KINDS, Run, differences

STEPS, EVERY = 24, 4
PATIENCE = 300.0  # seconds for one run: longer is a hang
FINISHED = 2  # exit code of resuming a finished run
NETS = {"simclr": "test_resnet", "byol": "test_resnet", "mae": "test_vit"}


@dataclass
class Trial:
    """One configuration: a run never stopped, and one that is killed.

    Args:
        kills: that hit, in words.
        different: what is not equal at the end; empty when all is.
    """

    channels: str
    method: str
    processes: int
    folder: Path
    kills: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.channels}-{self.method}-{self.processes}"

    def start(self, out: str, kill: tuple[str, int] | None = None) -> Run:
        recipe = {
            "name": "soak",
            "data": {"source": f"phantoms:{self.channels}?n=200&size=32", "channels": self.channels, "image_size": 32},
            "backbone": {"name": NETS[self.method]} | ({"patch_size": 8} if self.method == "mae" else {}),
            "method": {"name": self.method},
            "optim": {"batch_size": 16, "accumulate": 2 if self.channels == "color" else 1},
            "train": {"steps": STEPS, "checkpoint_every": EVERY, "device": "cpu", "precision": "float32"},
            "monitor": {"every": 1, "pictures": 2},
        }
        if self.processes > 1:
            recipe["train"]["devices"] = self.processes  # type: ignore[index]
        path = self.folder / "recipe.json"
        path.write_text(json.dumps(recipe))
        arguments = ["pretrain", "--recipe", str(path), "--resume", "--quiet", "--out", str(self.folder / out)]
        return Run(arguments, self.folder / f"{out}.log", kill, warm=self.processes == 1)

    def whole(self) -> tuple[dict[str, int], float]:
        """The run never stopped: its events and its seconds."""
        began = time.monotonic()
        run = self.start("whole")
        self._ended(run, "whole")
        return run.counts, time.monotonic() - began

    def kill_once(self, events: dict[str, int], seconds: float, draw: random.Random) -> bool:
        """Start or resume, and kill; whether the kill came before the end."""
        if (self.folder / "parts" / "backbone").is_dir():  # the last kill came after the artifact had its name
            self._tidy()
            self._compare()
            shutil.rmtree(self.folder / "parts")
        at: tuple[str, int] | None = None
        delay = draw.uniform(0, seconds)
        if draw.random() < 0.5:
            kind = draw.choice([k for k in KINDS if events.get(k)])
            at, delay = (kind, draw.randint(1, events[kind])), PATIENCE
        run = self.start("parts", at)
        code = run.wait(delay)
        if code is None and at is None:
            run.kill()
            code = run.wait(30)
        if code == -9:
            self.kills.append(f"{at[0]} {at[1]}" if at else f"{delay:.1f} s")
            return True
        if code != 0:
            raise SystemExit(f"{self.name}: exit code {code}: {self._log('parts')}")
        return False  # the moment lay beyond the end of a resumed run

    def finish(self) -> None:
        """Resume to the end and compare."""
        if not (self.folder / "parts" / "backbone").is_dir():
            self._ended(self.start("parts"), "parts")
        else:
            self._tidy()
        self._compare()

    def _tidy(self) -> None:
        """A run killed after its artifact had its name is finished: resuming says so, and clears up."""
        code = self.start("parts").wait(PATIENCE)
        if code != FINISHED:
            raise SystemExit(f"{self.name}: exit code {code} of a finished run: {self._log('parts')}")

    def _compare(self) -> None:
        self.different += differences(self.folder / "whole", self.folder / "parts")

    def _ended(self, run: Run, out: str) -> None:
        code = run.wait(PATIENCE)
        if code != 0:
            run.kill()
            raise SystemExit(f"{self.name}: exit code {code}: {self._log(out)}")

    def _log(self, out: str) -> str:
        return (self.folder / f"{out}.log").read_text()[-2000:]


def soak(kills: int, processes: list[int], seed: int, folder: Path) -> list[Trial]:
    """All trials, with the kills dealt out one after the other."""
    draw = random.Random(seed)
    settings = list(itertools.product(processes, ("gray", "color"), ("simclr", "byol", "mae")))
    dealt = Counter(i % len(settings) for i in range(kills))
    trials = []
    for number, (count, channels, method) in enumerate(settings):
        if not dealt[number]:
            continue
        trial = Trial(channels, method, count, folder / f"{number}")
        trial.folder.mkdir(parents=True)
        events, seconds = trial.whole()
        while len(trial.kills) < dealt[number]:
            trial.kill_once(events, seconds, draw)
        trial.finish()
        verdict = "equal" if not trial.different else f"DIFFERENT: {', '.join(trial.different[:5])}"
        print(f"{trial.name:16s} {seconds:6.1f} s  killed at {'; '.join(trial.kills):40s} {verdict}", flush=True)
        trials.append(trial)
    return trials


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trials = soak(options.kills, options.processes, options.seed, Path(folder))
    equal = all(not trial.different for trial in trials)
    found = {"kills": sum(len(t.kills) for t in trials), "bit_equal": equal, "trials": len(trials)}
    print(json.dumps(found | {"seconds": round(time.monotonic() - began)}))
    return 0 if equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
