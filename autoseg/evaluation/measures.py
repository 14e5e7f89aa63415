"""What is measured beyond the defaults: tolerances of labels, and which of them are tubes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from autoseg.errors import UsageError
from autoseg.evaluation.evaluate import ALL, ScoreJob


@dataclass(frozen=True)
class Measures:
    """By names of labels or regions; ALL stands for those that are not named."""

    tolerances_mm: Mapping[str, float] = field(default_factory=dict)  # of nsd and of the boundary metrics
    tubes: tuple[str, ...] = ()  # whose centre-lines are compared


DEFAULT = Measures()
Given = tuple[float | Mapping[str, float] | None, str | Sequence[str]]  # a tolerance and tubes, as they are given


def measures_of(tolerance: float | Mapping[str, float] | None, tubes: str | Sequence[str]) -> Measures:
    """Read what was given.

    Args:
        tolerance: mm, for all labels or by label; None: the default.
        tubes: labels, in a list or with commas between them; ALL: every one.

    Raises:
        UsageError: a tolerance that is not a length above 0.
    """
    given = tolerance if isinstance(tolerance, Mapping) else {} if tolerance is None else {ALL: tolerance}
    for name, value in given.items():
        if not (value > 0 and math.isfinite(value)):
            raise UsageError(f"a tolerance of {value} mm ({name})", remedy="give a number of mm above 0, such as 2")
    names = tubes.split(",") if isinstance(tubes, str) else tubes
    return Measures(dict(given), tuple(name.strip() for name in names if name.strip()))


def with_measures(jobs: Iterable[ScoreJob], measures: Measures) -> list[ScoreJob]:
    """The same jobs, measured so.

    Raises:
        UsageError: a name that is not a label.
    """
    jobs = list(jobs)
    for job in jobs[:1]:
        known = list(job.labels.scored)
        if unknown := [name for name in (*measures.tolerances_mm, *measures.tubes) if name not in (*known, ALL)]:
            raise UsageError(
                f"{', '.join(map(repr, unknown))}: not a label", remedy=f"the labels are {', '.join(known)}; or {ALL}"
            )
    found = []
    for job in jobs:
        tolerances = {
            name: measures.tolerances_mm.get(name, measures.tolerances_mm.get(ALL, job.tolerances_mm.get(name)))
            for name in job.labels.scored
        }
        given = {name: value for name, value in tolerances.items() if value is not None}
        found.append(replace(job, tolerances_mm=given, tubes=(*job.tubes, *measures.tubes)))
    return found
