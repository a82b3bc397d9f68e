"""Everything that watches a run, as its recipe's ``monitor`` section wants it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from torch import nn

from ssl_mednet.backbones.artifact import Preprocessing
from ssl_mednet.data.corpus import Corpus
from ssl_mednet.data.loader import BatchStream
from ssl_mednet.pretraining.alarm import CollapseAlarm
from ssl_mednet.pretraining.curves import Curves, Speed, TimedStream
from ssl_mednet.pretraining.online import Online, open_probe
from ssl_mednet.schema import Recipe


@dataclass(frozen=True)
class Monitor:
    """The watching callbacks of a run, in the order in which they must come, before checkpoints are written.

    Args:
        stream: the batches, timed; what the trainer must read from.
        online: None where nobody asks for looks at the frozen encoder.
    """

    stream: TimedStream
    curves: Curves
    alarm: CollapseAlarm
    speed: Speed
    online: Online | None

    @property
    def callbacks(self) -> list[pl.Callback]:
        return [*([self.online] if self.online else []), self.curves, self.alarm, self.speed]

    def chosen(self, encoder: nn.Module, steps: int) -> dict[str, Any]:
        """Put the weights that ``train.choose`` wants into the encoder of a finished run, and say which and why."""
        if self.online is None:
            return {"by": "last", "step": steps}
        if self.online.best:
            encoder.load_state_dict(self.online.best["state"])
        return self.online.chosen(steps)


def build_monitor(
    recipe: Recipe,
    folder: Path,
    corpus: Corpus,
    rows: np.ndarray,
    preprocessing: Preprocessing,
    stream: BatchStream,
    quiet: bool,
) -> Monitor:
    """What watches a run on these rows of a corpus.

    Raises:
        UserError: ``monitor.probe`` is no labelled set.
    """
    monitor, timed = recipe.monitor, TimedStream(stream)
    probe, online = open_probe(recipe, quiet), None
    if probe is not None or recipe.train.choose != "last":
        online = Online(monitor.probe_every, corpus, rows, preprocessing, probe, recipe.train.choose)
    curves = Curves(folder, monitor.every, online)
    alarm = CollapseAlarm(folder, curves, stop=monitor.on_collapse == "stop")
    return Monitor(timed, curves, alarm, Speed(folder, monitor.every, timed, online), online)
