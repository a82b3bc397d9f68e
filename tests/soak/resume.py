"""Kill pretraining with -9 at random moments, resume it until it ends, and compare it with the run never stopped.

    python tests/soak/resume.py [--kills 20] [--processes 1 2] [--seed 0]

Gray and color times SimCLR, BYOL and MAE times the numbers of processes; the kills go round. Half of them come after a
random time, half at a random event: a write into a checkpoint, a rename, between update and checkpoint, between the
batches of one update, while the artifact is saved. Of several processes all are killed at once, or one alone at an
event of its own, which must end the run with a word on which one it was. A kill counts when it came between the first
batch of its start and the end of the run. Every tensor of the last checkpoint, the metrics, pictures and the artifact
must have the same bits. The last line is JSON: ``kills``, ``bit_equal``.
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

from killed import KINDS, Kill, Run, differences

STEPS, EVERY = 24, 4
PATIENCE = 300.0  # seconds for one run: longer is a hang
FINISHED, ONE_DIED = 2, 5  # exit codes: of resuming a finished run, and of a run that has lost a process
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

    def start(self, out: str, kill: Kill | None = None) -> Run:
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
        return Run(arguments, self.folder / f"{out}.log", kill, several=self.processes > 1)

    def whole(self) -> Run:
        """The run never stopped."""
        run = self.start("whole")
        self._ended(run, "whole")
        return run

    def kill_once(self, whole: Run, draw: random.Random) -> None:
        """Start or resume, and kill; counted if that came within the training."""
        if self._finished():  # the last kill came after the artifact had its name
            self._tidy()
            self._compare()
            shutil.rmtree(self.folder / "parts")
        kill = self._event(whole, draw) if draw.random() < 0.5 else None
        delay = draw.uniform(*whole.trained)
        run = self.start("parts", kill)
        code = run.wait(PATIENCE if kill else delay)
        if code is None:
            run.kill()
            code = run.wait(30)
        if kill is not None and kill.alone and code == ONE_DIED:
            if f"process {kill.rank} of {self.processes}" not in self._log("parts"):
                raise SystemExit(f"{self.name}: which process died is not said: {self._log('parts')}")
        elif code not in (-9, 0):
            raise SystemExit(f"{self.name}: exit code {code}: {self._log('parts')}")
        began = bool(run.counts) and run.counts[0].get("batch", 0) > 0
        if code != 0 and began and not self._finished():
            self.kills.append(self._words(kill) if kill else f"{delay:.1f} s, update {run.counts[0].get('update', 0)}")

    def _event(self, whole: Run, draw: random.Random) -> Kill:
        rank = draw.randrange(len(whole.counts))
        kind = draw.choice([k for k in KINDS if whole.counts[rank].get(k)])
        alone = self.processes > 1 and draw.random() < 0.5
        return Kill(kind, draw.randint(1, whole.counts[rank][kind]), rank, alone)

    def _words(self, kill: Kill) -> str:
        if self.processes == 1:
            return f"{kill.kind} {kill.number}"
        return f"{kill.kind} {kill.number} of {kill.rank}, {'alone' if kill.alone else 'all'}"

    def _finished(self) -> bool:
        return (self.folder / "parts" / "backbone").is_dir()

    def finish(self) -> None:
        """Resume to the end and compare."""
        if not self._finished():
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
        whole = trial.whole()
        while len(trial.kills) < dealt[number]:
            trial.kill_once(whole, draw)
        trial.finish()
        verdict = "equal" if not trial.different else f"DIFFERENT: {', '.join(trial.different[:5])}"
        print(f"{trial.name:14s} killed at {'; '.join(trial.kills):50s} {verdict}", flush=True)
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
