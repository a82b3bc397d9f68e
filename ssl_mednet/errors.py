"""The few errors a user can cause: what is wrong, what to do about it, and the exit code of the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. The command line prints it as one line, without a traceback.

    Args:
        message: what is wrong, naming the file and the key or path.
        hint: what to do about it.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class RecipeError(UserError):
    """A recipe, suite or override that says something it may not say."""


class DataError(UserError):
    """A data source as a whole that cannot be used; a single bad file never raises this."""

    exit_code = 3


class IngestError(DataError):
    """What stops an ingest whatever its sources are: where it writes to, or the engine that does the work."""


class WriteError(DataError):
    """A file or folder that cannot be written."""


class ArtifactError(UserError):
    """Weights that are missing, broken, or do not fit the data they are asked to see."""

    exit_code = 4


class TrainingError(UserError):
    """A run that cannot go on by itself; its last checkpoint is there and the message says what to mend."""

    exit_code = 5


class ResumeMe(UserError):
    """A run that ended early through no fault of its own: ``--resume`` goes on (EX_TEMPFAIL of sysexits.h)."""

    exit_code = 75


class Hung(ResumeMe):
    """Threads wait for what does not come; the process ends without waiting for them."""


class UnreadableImage(Exception):
    """One file, or one image in it, that cannot be read. Collected and reported, never fatal to a run.

    Args:
        path: the file, as the user knows it; a member of an archive is written ``archive.zip!member.png``.
        reason: why, in words for a person.
    """

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, str]]:
        return type(self), (self.path, self.reason)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"did you mean 'simclr'?"`` for the nearest of ``known``, or an empty string where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else ""
