"""What licences of images mean for weights trained on them. A careful reading of their names, not legal advice.

Licences are SPDX identifiers (https://spdx.org/licenses), ``custom:...`` with a few words for terms of one's own, or
``""`` where none is known. Whether weights are adapted material of the images they were trained on is not settled
anywhere; this module assumes that they are, the cautious way, so every condition on the images carries over.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from ssl_mednet.errors import did_you_mean

LicenceClass = Literal["permissive", "share-alike", "nc", "custom", "unknown"]
CLASSES: tuple[LicenceClass, ...] = ("permissive", "share-alike", "nc", "custom", "unknown")
DISCLAIMER = "A reading of licence names, not legal advice; read the terms of each set before you publish."

# Version 1.0 knows no later one.
_CREATIVE_COMMONS = re.compile(r"CC-BY(?P<nc>-NC)?(?P<sa>-SA)?(?P<nd>-ND)?-[2-4]\.\d", re.IGNORECASE)
_FREE = frozenset({"CC0-1.0", "PDDL-1.0", "Unlicense"})  # nothing is asked for
_NOTICE = frozenset({"MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ODC-By-1.0"})  # the notice is to be kept
_SHARE_ALIKE = frozenset({"ODbL-1.0"})
_OTHERS = {name.lower(): name for name in _FREE | _NOTICE | _SHARE_ALIKE} | {"cc0": "CC0-1.0"}
_CUSTOM = "custom:"
# Words that mark terms of one's own as closed to commercial use; found, they only ever add a condition.
_NON_COMMERCIAL = re.compile(r"\b(non-?commercial|research|academic|nc)\b", re.IGNORECASE)


class Level(IntEnum):
    """How far trained weights may be published, from free to not before someone has agreed."""

    FREE = 0
    ATTRIBUTION = 1
    SHARE_ALIKE = 2
    NON_COMMERCIAL = 3
    ASK = 4


@dataclass(frozen=True)
class Terms:
    """The conditions that a licence sets, as far as its name tells them.

    Args:
        known: False where there is no licence, or none whose meaning this module knows and no ``custom:`` either.
        custom: terms of one's own, which somebody has to read.
    """

    known: bool = True
    attribution: bool = False
    share_alike: bool = False
    non_commercial: bool = False
    no_derivatives: bool = False
    custom: bool = False


@dataclass(frozen=True)
class Verdict:
    """Under which licence weights may be published that were trained on rows of these licences.

    Args:
        level: the strictest of all rows.
        publish: the licence for the weights, or None where somebody has to be asked first.
        conditions: each condition in words, with the licences that set it.
        rows: images of each class of licence.
    """

    level: Level
    publish: str | None
    conditions: tuple[str, ...]
    rows: dict[LicenceClass, int]

    @property
    def sentence(self) -> str:
        """The verdict in one line."""
        if self.publish is None:
            return "Trained weights may not be published before the terms named below are settled."
        return f"Trained weights may be published under {self.publish}, under these conditions."


def spelled(licence: str) -> str:
    """The identifier that is meant, where it is known; SPDX ignores case (annex B of its specification, 2.3).

    >>> [spelled(x) for x in ("cc-by-4.0", "CC BY 4.0", "cc0", "mit", "Custom: own words", "WTFPL")]
    ['CC-BY-4.0', 'CC-BY-4.0', 'CC0-1.0', 'MIT', 'custom:own words', 'WTFPL']
    """
    name = licence.strip()
    if name[: len(_CUSTOM)].lower() == _CUSTOM:
        return _CUSTOM + name[len(_CUSTOM) :].strip()
    joined = re.sub(r"[\s_]+", "-", name)
    return joined.upper() if _CREATIVE_COMMONS.fullmatch(joined) else _OTHERS.get(joined.lower(), name)


def doubt(licence: str) -> str:
    """Why a licence that somebody has stated says nothing here; empty where it does, or where none is stated."""
    if not licence.strip() or terms(licence).known:
        return ""
    kinds = ("", "-SA", "-ND", "-NC", "-NC-SA", "-NC-ND")
    known = [*_OTHERS.values(), *(f"CC-BY{kind}-{version}" for version in ("4.0", "3.0") for kind in kinds)]
    near = did_you_mean(licence, known) or did_you_mean(licence.upper(), known)
    hint = near or "an SPDX identifier as CC-BY-4.0, or custom:WORDS"
    return f"{licence!r} is no licence that is known here and counts as none; {hint}"


def terms(licence: str) -> Terms:
    """What ``licence`` asks for.

    >>> terms("CC-BY-NC-SA-4.0").share_alike
    True
    """
    name = spelled(licence)
    match = _CREATIVE_COMMONS.fullmatch(name)
    if match:
        return Terms(
            attribution=True,
            share_alike=bool(match["sa"]),
            non_commercial=bool(match["nc"]),
            no_derivatives=bool(match["nd"]),
        )
    if name in _FREE:
        return Terms()
    if name in _NOTICE:
        return Terms(attribution=True)
    if name in _SHARE_ALIKE:
        return Terms(attribution=True, share_alike=True)
    if name.startswith(_CUSTOM) and name != _CUSTOM:
        return Terms(attribution=True, custom=True, non_commercial=bool(_NON_COMMERCIAL.search(name)))
    return Terms(known=False)


def classify(licence: str) -> LicenceClass:
    """The class of a licence; the strictest of those that fit.

    >>> [classify(x) for x in ("CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-NC-4.0", "custom:own words", "")]
    ['permissive', 'share-alike', 'nc', 'custom', 'unknown']
    """
    found = terms(licence)
    if not found.known:
        return "unknown"
    if found.non_commercial:
        return "nc"
    if found.custom or found.no_derivatives:
        return "custom"
    return "share-alike" if found.share_alike else "permissive"


def roll_up(counts: Mapping[str, int]) -> Verdict:
    """The verdict on a corpus with ``counts[licence]`` rows of each licence; the most restrictive wins.

    Licences without rows say nothing. Rows more never loosen a verdict.

    Raises:
        ValueError: a negative count.
    """
    if any(n < 0 for n in counts.values()):
        raise ValueError(f"counts of rows are not negative: {dict(counts)}")
    present: Counter[str] = Counter()
    for licence, n in sorted(counts.items()):
        if n:
            present[spelled(licence)] += n
    rows: dict[LicenceClass, int] = dict.fromkeys(CLASSES, 0)
    for licence, n in present.items():
        rows[classify(licence)] += n
    found = {licence: terms(licence) for licence in present}
    clash = _clash(found)
    level = Level.ASK if clash else max(map(_level, found.values()), default=Level.FREE)
    return Verdict(level, _publish(level, found), (*clash, *_conditions(found, present)), rows)


def _level(found: Terms) -> Level:
    if not found.known or found.custom or found.no_derivatives:
        return Level.ASK
    if found.non_commercial:
        return Level.NON_COMMERCIAL
    if found.share_alike:
        return Level.SHARE_ALIKE
    return Level.ATTRIBUTION if found.attribution else Level.FREE


def _clash(found: Mapping[str, Terms]) -> tuple[str, ...]:
    """Pairs of conditions that no single licence satisfies.

    Share-alike without NC asks for a licence that allows commerce, NC forbids it; two families of share-alike each
    ask for themselves.
    """
    alike = [name for name, t in found.items() if t.share_alike and not t.non_commercial]
    closed = [name for name, t in found.items() if t.non_commercial]
    other = [name for name in alike if name in _SHARE_ALIKE]
    clashes = []
    if alike and closed:
        clashes.append(f"share-alike ({', '.join(alike)}) and non-commercial ({', '.join(closed)})")
    if other and len(other) < len(alike):
        clashes.append(f"the share-alike of {', '.join(other)} and of {', '.join(sorted({*alike} - {*other}))}")
    return tuple(f"no licence satisfies both {clash}" for clash in clashes)


def _publish(level: Level, found: Mapping[str, Terms]) -> str | None:
    """The licence for the weights; later versions of Creative Commons are what their share-alike clauses allow."""
    if level is Level.ASK:
        return None
    if level is Level.NON_COMMERCIAL:
        return "CC-BY-NC-SA-4.0" if any(t.share_alike for t in found.values()) else "CC-BY-NC-4.0"
    if level is Level.SHARE_ALIKE:
        databases = sorted(name for name in found if name in _SHARE_ALIKE)
        return databases[0] if databases else "CC-BY-SA-4.0"
    return "CC-BY-4.0" if level is Level.ATTRIBUTION else "any licence"


def _conditions(found: Mapping[str, Terms], counts: Mapping[str, int]) -> tuple[str, ...]:
    """One line on each condition, strictest first: what it is, how many images set it, by which licences."""
    groups = {
        "unknown licence: find it before publishing": [n for n, t in found.items() if not t.known],
        "terms of their own: read them before publishing": [n for n, t in found.items() if t.custom],
        "no derivatives: ask the owners": [n for n, t in found.items() if t.no_derivatives],
        "no commercial use": [n for n, t in found.items() if t.non_commercial],
        "share alike": [n for n, t in found.items() if t.share_alike],
        "name the sets and their authors": [n for n, t in found.items() if t.attribution],
    }
    return tuple(
        f"{what} ({sum(counts[n] for n in names):,} images: {', '.join(n or 'none stated' for n in names)})"
        for what, names in groups.items()
        if names
    )
