"""The labels of a dataset: by option, by its layout, or those found in its label files."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from autoseg.datasets.checks.annotation import agree_on_colours
from autoseg.datasets.intake import IntakeOptions
from autoseg.datasets.loading import count_values, workers_for
from autoseg.datasets.objects import (
    ObjectMeasurements,
    decided,
    describe_objects,
    measure_objects,
    numbers_objects,
    problems_of_objects,
    undecided_labels,
)
from autoseg.datasets.pairing import Case, Found, Problem
from autoseg.datasets.series import ignore_in_labels, missing_structures, names_in_labels, names_of_outlines
from autoseg.errors import DataError, UsageError
from autoseg.imaging.formats.dicom_labels import same_name
from autoseg.imaging.formats.readers import read_labels
from autoseg.imaging.labels import LabelSet
from autoseg.imaging.regions import refuse_lost_labels
from autoseg.messages import some
from autoseg.processes import map_in_processes

OBJECT = "object"  # the name of what label files number, where nobody says
MOST_FOUND_LABELS = 200  # more values in label files than this are intensities, not labels


def decide_labels(
    found: Found, options: IntakeOptions, cases: Sequence[Case]
) -> tuple[LabelSet, dict[str, ObjectMeasurements]]:
    """The labels, and what was measured of the objects of things, whose borders have a width that suits them.

    Raises:
        DataError: there are no labels, or too many; UsageError: an option does not fit them.
    """
    labels = _labels(found, options, cases)
    labelled = [case for case in cases if case.label is not None]
    images = [next(iter(case.images), None) for case in labelled]
    labels, measured = _with_borders(labels, [str(case.label) for case in labelled], images=images)
    for name, objects in measured.items():
        found.notes.append(describe_objects(name, objects))
        found.problems += problems_of_objects(name, objects)
    return labels, measured


def labels_of_objects(options: IntakeOptions, files: Sequence[str], *, workers: int | None = None) -> LabelSet:
    """The labels of files that hold objects, without a dataset around them. Raises as `decide_labels`."""
    assert options.instances is not None
    labels = undecided_labels(options.instances, options.labels, options.divisor, options.ignore)
    return _with_borders(labels, files, workers)[0]


def _with_borders(
    labels: LabelSet, files: Sequence[str], workers: int | None = None, images: Sequence[str | None] = ()
) -> tuple[LabelSet, dict[str, ObjectMeasurements]]:
    """The labels with things whose borders suit the objects in label files, and what was measured of these."""
    measured = {name: measure_objects(files, labels, name, images=images, workers=workers) for name in labels.things}
    things = {name: decided(thing, measured[name]) for name, thing in labels.things.items()}
    return replace(labels, things=things), measured


def _labels(found: Found, options: IntakeOptions, cases: Sequence[Case]) -> LabelSet:
    """Labels by option, by the layout, or those found in the label files; with regions and ignore label by option."""
    ignore = ignore_in_labels(cases) if options.ignore is None else options.ignore
    colours = options.colours or {}
    if not colours:
        colours, problems = agree_on_colours([case.label for case in cases if case.label is not None])
        found.problems += problems
    if (things := _things_of_outlines(found, options, cases)) is not None:
        return things
    if options.instances is not None:
        return undecided_labels(options.instances, options.labels or _declared(found), options.divisor, ignore)
    if options.labels is not None:
        values = {name: value for name, value in options.labels.items() if value != 0}
        labels = LabelSet(values, ignore=ignore)
    elif found.labels is not None:
        labels = found.labels if ignore is None else replace(found.labels, ignore=ignore)
    elif named := names_in_labels(cases):
        labels = LabelSet(named, ignore=ignore)
        shown = ",".join(f"{name}={value}" for name, value in named.items())
        found.notes.append(f"the labels are those that the label files name: {shown} (choose with --labels)")
    else:
        values_of = _values_by_file(cases, colours)
        if numbers_objects([[v for v in values if v > 0 and v != ignore] for values in values_of]):
            found.notes.append(
                "the label files number objects (1, 2, 3, ... to a different number in each): every value is taken for "
                f"an object called {OBJECT} (name them with --instances; with --labels, values are kinds)"
            )
            return undecided_labels((OBJECT,), None, None, ignore)
        labels = LabelSet(_found_labels(found, ignore, cases, values_of, colours), ignore=ignore)
    problems, notes = missing_structures(cases, labels.values)
    found.problems += problems
    found.notes += notes
    if options.regions is not None:
        labels = replace(labels, regions=options.regions, region_values=_values_to_write(options.regions))
        refuse_lost_labels(labels.regions, labels.region_values, as_option=True)
    labels = replace(labels, colours=colours)
    if [*labels.values.values()] == [1] and labels.ignore != 255:
        labels = replace(labels, aliases={255: 1})  # a mask saved as a picture: `check` reports where it is used
    return labels


def _things_of_outlines(found: Found, options: IntakeOptions, cases: Sequence[Case]) -> LabelSet | None:
    """The labels of outlines whose objects have numbers: by option, or those of one kind; None: they have none.

    Raises:
        UsageError: --instances names something else than the outlines do.
    """
    if not (names := names_of_outlines(cases)):
        return None
    if options.instances is None:
        if len(names) > 1 or options.labels is not None or options.regions is not None:
            return None
        found.notes.append(
            f"all outlines are called {names[0]}: every one is an object of its own (for one label instead: "
            f"--labels {names[0]}=1)"
        )
    asked = options.instances or tuple(names)
    spelled = {one: next((name for name in names if same_name(name, one)), None) for one in asked}
    if unknown := [one for one, name in spelled.items() if name is None]:
        raise UsageError(
            f"--instances {','.join(asked)}: no outline is called {unknown[0]!r}", remedy=f"they are {some(names)}"
        )
    things = [str(name) for name in spelled.values()]
    alone = len(names) == 1 and options.labels is None and options.divisor is None
    values = options.labels or {name: value for value, name in enumerate(names, start=1)}
    ignore = ignore_in_labels(cases, numbers=alone) if options.ignore is None else options.ignore
    return undecided_labels(things, None if alone else values, options.divisor, ignore)


def _values_to_write(regions: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The value each region writes: one that no later, inner region covers.

    Raises:
        UsageError: a region has no such value.
    """
    written = []
    for index, (name, union) in enumerate(regions.items()):
        later = {value for inner in list(regions.values())[index + 1 :] for value in inner}
        if not (own := [value for value in union if value not in later]):
            what = f"--regions: all of {name!r} belongs to the regions after it"
            raise UsageError(what, remedy='list the outermost region first: "whole=1+2,core=2"')
        written.append(own[0])
    return tuple(written)


def _declared(found: Found) -> dict[str, int] | None:
    """The labels that a layout declares, if they are more than a name for the objects."""
    return None if found.labels is None or len(found.labels.values) < 2 else dict(found.labels.values)


def _values_by_file(cases: Sequence[Case], colours: dict[str, int]) -> list[tuple[int, ...]]:
    """The different values in each label file of the training cases, ascending; every file is read."""
    files = [case.label for case in cases if case.label is not None]
    read = partial(_values_in, colours=colours)
    return map_in_processes(read, files, title="labels", workers=workers_for(files, None))


def _found_labels(
    found: Found,
    ignore: int | None,
    cases: Sequence[Case],
    contents: Sequence[tuple[int, ...]],
    colours: dict[str, int],
) -> dict[str, int]:
    """Names for the values found in the label files of the training cases.

    Raises:
        DataError: 0 is the only value, a file cannot be read, or there are too many values for labels.
    """
    files = [case.label for case in cases if case.label is not None]
    values = sorted({value for content in contents for value in content if value > 0} - {ignore})
    if not values:
        for file in files:
            read_labels(Path(file), colours)  # such as a mask in colours: its error explains how to name them
        what = f"no label file in {Path(files[0]).parent} contains any label" if files else "no case has a label file"
        raise DataError(
            f"{what}, and none is declared", remedy="check the label files, or name labels: --labels liver=1"
        )
    if len(values) > MOST_FOUND_LABELS:
        span = f"{len(values)} different values, from {values[0]} to {values[-1]}"
        what = f"the label files contain {span}: are these intensities, or one number per object?"
        raise DataError(
            what,
            remedy="if every object has a number of its own, name them: --instances nuclei; otherwise use label maps "
            "(masks without blurred edges, one value per kind of object), or name the labels: --labels liver=1",
        )
    named = {"foreground": values[0]} if len(values) == 1 else {f"label_{value}": value for value in values}
    shown = ",".join(f"{name}={value}" for name, value in named.items())
    found.notes.append(f"no labels are named; the label files contain these values: {shown} (name them with --labels)")
    if 255 in values and len(values) > 1:
        what = f"the label files contain 255 besides {', '.join(map(str, values[:-1][:5]))}: it counts as a label"
        remedy = "if 255 marks voxels that are not annotated, pass --ignore 255"
        found.problems.append(Problem(None, str(Path(files[0]).parent), what, remedy, "warning"))
    return named


def _values_in(file: str, colours: dict[str, int]) -> tuple[int, ...]:
    """Values in a label file; none where it cannot be read, which `check` reports."""
    try:
        return tuple(count_values(read_labels(Path(file), colours).array))
    except DataError:
        return ()
