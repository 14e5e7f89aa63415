"""The report as one HTML file: it needs no network and no other file, and opens on a phone.

Everything that comes from a user (names, labels, paths) is escaped by the template; charts and pictures are made here
and escape names themselves. The viewer, NiiVue, is in the page as text and is run when somebody opens a case.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from autoseg.report.checklists import claim, properties
from autoseg.report.gallery import Shown, by_place, gallery
from autoseg.report.gathered import Gathered
from autoseg.report.looked import LookedAt, looked_at
from autoseg.report.methods import paragraph
from autoseg.report.provenance import commands, digests, machines, seeds, times, total_time, version_line
from autoseg.report.score_section import score_section
from autoseg.report.sections import Gap, Section, data_section, plan_section, training_section
from autoseg.report.verdict import verdict
from autoseg.training.machines import Machine

MOST_BYTES = 10_000_000  # of a page
REFRESH_SECONDS = 30  # of a page while its folds train
VIEWER = "vendor/niivue-0.69.0.umd.js"
SECTIONS = (
    ("data", "Data"), ("plan", "Plan"), ("training", "Training"), ("scores", "Cross-validation"),
    ("cases", "Cases"), ("provenance", "Provenance"),
)  # fmt: skip


@dataclass(frozen=True)
class Page:
    """A report."""

    text: str  # HTML
    cases: int  # with pictures


def render(of: Gathered, here: Machine | None = None, *, pictures: bool = True) -> Page:
    """Make the page.

    Args:
        here: the machine that writes the page, which is stated where no fold recorded its own.
        pictures: with the gallery, which reads images; without it, a page is made in a second.

    Returns:
        A page of at most MOST_BYTES: where that is too little, the viewer or all pictures are left out.
    """
    sections = {
        "data": data_section(of),
        "plan": plan_section(of),
        "training": training_section(of),
        "scores": score_section(of),
    }
    shown, looked = (gallery(of), looked_at(of)) if pictures else ([], [])
    for kept in (shown, [replace(one, volumes=None) for one in shown], []):
        text = _page(of, here, sections, kept, looked if kept else [])
        if len(text.encode("utf-8")) <= MOST_BYTES:
            break
    return Page(text, len(kept))


def _page(
    of: Gathered, here: Machine | None, sections: dict[str, Section], shown: Sequence[Shown], looked: Sequence[LookedAt]
) -> str:
    volumes = [_for_viewer(one) for one in shown if one.volumes is not None]
    text = _environment().get_template("report.html.j2").render(
        title=of.plan.dataset,
        model=f"{of.configuration}, {of.network}",
        workspace=str(of.workspace.root.resolve()),
        made=_utc(of.made),
        live=of.live,
        refresh=REFRESH_SECONDS if of.live else None,
        contents=SECTIONS,
        verdict=verdict(of, sections["training"], sections["data"]),
        tiles=_tiles(of),
        sections=sections,
        groups=by_place(shown),
        looked=looked,
        gallery_gap=_gallery_gap(of, shown),
        volumes=volumes,
        viewer=Markup(_source(VIEWER)) if volumes else "",
        provenance=_provenance(of, here),
        version=version_line(),
        label_names=list(of.plan.labels.values),
    )  # fmt: skip
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip()) + "\n"


def _tiles(of: Gathered) -> list[tuple[str, str]]:
    """Figures to see at a glance: (figure, what it is)."""
    found = []
    if of.dataset is not None:
        found.append((str(len(of.dataset.cases)), "cases"))
        if of.dataset.patients_known:
            found.append((str(len({case.patient for case in of.dataset.cases})), "patients"))
    found.append((str(len(of.plan.labels.scored)), "regions" if of.plan.labels.has_regions else "labels"))
    if of.planned_folds:
        found.append((f"{sum(fold.finished for fold in of.folds)} of {of.planned_folds}", "folds trained"))
    known = times(of)
    if known:
        found.append((total_time(known).partition(" of ")[0], "of training"))
    return found


def _gallery_gap(of: Gathered, shown: Sequence[Shown]) -> Gap | None:
    if shown:
        return None
    if of.live:
        return Gap("pictures are drawn when the training ends", of.command("report"))
    if of.scores is None:
        return Gap("no case is scored yet", of.command("evaluate"))
    return Gap("no pictures in this page", of.command("report"))


def _for_viewer(one: Shown) -> dict[str, Any]:
    """What the script needs of a case."""
    assert one.volumes is not None
    found = one.volumes
    return {
        "id": one.id,
        "title": f"{one.id} · fold {one.fold} · Dice {one.dice:.3f}",
        "image": found.image,
        "reference": found.reference,
        "segmentation": found.segmentation,
        "errors": found.errors,
        "at": found.at,
    }


def _provenance(of: Gathered, here: Machine | None) -> dict[str, Any]:
    known = times(of)
    on = machines(of, here)
    torch = list(dict.fromkeys(version for one in on if (version := one.machine.versions.get("torch"))))
    return {
        "machines": on,
        "digests": digests(of),
        "commands": commands(of),
        "seeds": seeds(of),
        "times": known,
        "total": total_time(known) if known else "",
        "methods": paragraph(of, " and ".join(torch) or None),
        "claim": claim(of),
        "properties": properties(of),
    }


@cache
def _environment() -> Any:
    """The templates, with everything that is not marked as HTML escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("autoseg.report", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.globals["style"] = Markup(_source("templates/style.css"))
    found.globals["script"] = Markup(_source("templates/page.js"))
    found.filters["safe_json"] = _safe_json
    return found


def _safe_json(value: Any) -> Markup:
    """JSON inside a script element, in which no text can end the element."""
    text = json.dumps(value, ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


@cache
def _source(name: str) -> str:
    return files("autoseg.report").joinpath(name).read_text(encoding="utf-8")


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
