"""Options of the command line about a dataset: what its layout cannot say itself.

parse_options   as typed -> IntakeOptions
"""

from dataclasses import dataclass

from autoseg.datasets.checks.annotation import colours_of_labels
from autoseg.errors import UsageError


@dataclass(frozen=True)
class IntakeOptions:
    """Options of the command line that complete a layout; None leaves it to the dataset."""

    channels: tuple[str, ...] | None = None
    labels: dict[str, int] | None = None  # name -> value
    regions: dict[str, tuple[int, ...]] | None = None  # name -> values of its labels
    ignore: int | None = None
    patient_regex: str | None = None
    colours: dict[str, int] | None = None  # "#rrggbb" in pictures -> value of its label
    instances: tuple[str, ...] | None = None  # kinds of objects that are separated
    divisor: int | None = None  # of values in label files, where objects are value x divisor + number


def parse_options(
    *,
    channels: str | None = None,
    labels: str | None = None,
    regions: str | None = None,
    ignore: str | int | None = None,
    patient_regex: str | None = None,
    instances: str | None = None,
    divisor: int | None = None,
) -> IntakeOptions:
    """Read `--channels CT,MR --labels liver=1,tumour=2 --regions "whole=1+2,core=2" --ignore 255 --patient-regex R`.

    And `--instances cell,nucleus --divisor 1000`.

    Raises:
        UsageError: an option that cannot be read; the message says how to write it.
    """
    names = None if channels is None else tuple(name.strip() for name in channels.split(","))
    if names is not None and (not all(names) or len({name.lower() for name in names}) != len(names)):
        raise UsageError(f"--channels {channels!r} has an empty or a repeated name", remedy="write --channels CT,MR")
    things = None if instances is None else tuple(name.strip() for name in instances.split(","))
    if things is not None and (not all(things) or len(set(things)) != len(things)):
        raise UsageError(
            f"--instances {instances!r} has an empty or a repeated name", remedy="write --instances nuclei"
        )
    if divisor is not None and things is None:
        raise UsageError("--divisor belongs to --instances", remedy="name the objects: --instances nuclei")
    pairs = _pairs("--labels", labels)
    colours = colours_of_labels(pairs)  # then labels are given by colour
    if things is not None and (regions is not None or colours):
        other = "--regions" if regions is not None else "labels given by colour"
        raise UsageError(
            f"--instances separates objects by their numbers, which {other} cannot have",
            remedy=f"omit --instances, or {other}",
        )
    values = {name: colours.get(text.lower()) or _integers("--labels", text)[0] for name, text in pairs.items()}
    unions = {name: _integers("--regions", text) for name, text in _pairs("--regions", regions).items()}
    return IntakeOptions(
        channels=names,
        labels=None if labels is None else values,
        regions=None if regions is None else unions,
        ignore=None if ignore is None else _integers("--ignore", str(ignore))[0],
        patient_regex=patient_regex,
        colours=colours or None,
        instances=things,
        divisor=divisor,
    )


def _pairs(option: str, text: str | None) -> dict[str, str]:
    """Read `name=text,name=text`."""
    pairs: dict[str, str] = {}
    for entry in (text or "").split(",") if text is not None else ():
        name, separator, value = (part.strip() for part in entry.partition("="))
        if not (name and separator and value) or name in pairs:
            example = "liver=1,tumour=2" if option == "--labels" else '"whole=1+2,core=2"'
            raise UsageError(
                f"{option} {text!r}: {entry!r} is not name=value, or repeats a name", remedy=f"write {option} {example}"
            )
        pairs[name] = value
    return pairs


def _integers(option: str, text: str) -> tuple[int, ...]:
    """Read `1+2`; only --regions takes more than one number."""
    parts = text.split("+") if option == "--regions" else [text]
    try:
        return tuple(int(part) for part in parts)
    except ValueError:
        raise UsageError(f"{option}: {text!r} is not a number", remedy="use the values in the label files") from None
