"""What a fine-tuning run is after an epoch, kept in the cache until it has ended: one that is killed goes on."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from ssl_mednet.files import cache_folder, replacing
from ssl_mednet.progress import Dispensable

if TYPE_CHECKING:
    from ssl_mednet.evaluation.finetune import Run

EVERY = 60.0  # seconds of training that may be lost; a run that is shorter writes nothing
_FORMAT = 1


class Halfway:
    """The state of a run on the disk.

    Args:
        said: everything that the course of the run depends on: what is another run has another name.
    """

    def __init__(self, *said: Any) -> None:
        digest = hashlib.sha256()
        for one in (_FORMAT, torch.__version__, *said):
            text = one if isinstance(one, bytes) else f"{one}".encode()
            digest.update(f"{len(text)} ".encode() + text)
        self.path = cache_folder() / "finetuning" / f"{digest.hexdigest()[:24]}.pt"
        self._saved, self._dispensable = time.monotonic(), Dispensable("the state of fine-tuning is")

    def save(self, run: Run, epoch: int) -> None:
        """Keep what the run is after this epoch, if that is worth it by now."""
        if time.monotonic() - self._saved < EVERY:
            return
        state = {
            "epoch": epoch,
            "history": run.history,
            "classifier": run.classifier.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "scaler": run.scaler.state_dict(),
            "best": vars(run.best) | {"scores": torch.from_numpy(run.best.scores)},
            "drawn": torch.get_rng_state(),  # dropout; order and augmentation are drawn from seed and step
            "drawn_on_device": torch.cuda.get_rng_state(run.device) if run.device.type == "cuda" else None,
        }
        with self._dispensable, replacing(self.path) as temporary:
            torch.save(state, temporary)
        self._saved = time.monotonic()

    def take_up(self, run: Run) -> int:
        """Make a run what it was; the last epoch that it has done, 0 where nothing of it is kept."""
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return 0
        except Exception:  # damaged: torch raises anything
            self.drop()
            return 0
        run.classifier.load_state_dict(state["classifier"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.scaler.load_state_dict(state["scaler"])
        run.history[:] = state["history"]
        vars(run.best).update(state["best"] | {"scores": state["best"]["scores"].numpy()})
        torch.set_rng_state(state["drawn"])
        if state["drawn_on_device"] is not None:
            torch.cuda.set_rng_state(state["drawn_on_device"], run.device)
        return int(state["epoch"])

    def drop(self) -> None:
        """The run has ended."""
        with suppress(OSError):  # a cache that cannot be written has none
            self.path.unlink()
