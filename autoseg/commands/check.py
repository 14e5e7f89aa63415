"""Folder -> what was understood of it, and everything that is wrong with it."""

from dataclasses import dataclass
from pathlib import Path

from autoseg.datasets.checks.duplicates import as_one_patient
from autoseg.datasets.checks.problems import check, problem_table
from autoseg.datasets.dataset import Dataset, IntakeOptions, Problem, discover
from autoseg.datasets.fixing.copying import refuse_unfinished
from autoseg.lines import LOG
from autoseg.messages import counted

COUNTED_LABELS = 9  # more are counted where they are listed
MENDED = "the same command with --fix OUT writes a copy that repairs every fault with one right answer"


@dataclass(frozen=True)
class DatasetReport:
    """What was understood of a dataset, and what is wrong with it."""

    dataset: Dataset
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems for which the dataset cannot be planned as it is."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def usable(self) -> bool:
        """Whether the dataset can be planned as it is."""
        return not self.errors


def check_dataset(root: Path, intake: IntakeOptions, *, workers: int | None = None) -> DatasetReport:
    """Say what was understood of a dataset and everything that is wrong with it.

    Raises:
        UsageError: there is no such dataset, or an option does not fit it.
        DataError: no layout fits.
    """
    refuse_unfinished(root)
    dataset, problems = discover(root, intake)
    problems, _ = check(dataset, known=problems, workers=workers)
    report = DatasetReport(as_one_patient(dataset, problems), tuple(problems))
    LOG.info(describe_dataset(report.dataset))
    LOG.info(problem_table(problems))
    if any(not problem.stays for problem in report.errors):  # a copy can be without the faulty cases
        LOG.info(MENDED)
    return report


def describe_dataset(dataset: Dataset) -> str:
    """What was understood of a dataset, in a few lines."""
    return "\n".join([*understood(dataset), *(f"note: {note}" for note in dataset.notes)])


def understood(dataset: Dataset) -> list[str]:
    """A dataset's name and counts, channels, labels and regions: a line each."""
    patients = len({case.patient for case in dataset.cases})
    many = len(dataset.labels.values)
    count = f" ({many})" if many > COUNTED_LABELS else ""
    lines = [
        f"{dataset.name}: {counted(len(dataset.cases), 'case')} of {counted(patients, 'patient')}, "
        f"{counted(len(dataset.test_cases), 'test case')} "
        f"({dataset.layout} layout)",
        f"channels: {', '.join(dataset.channels)}",
        f"labels{count}: " + ", ".join(f"{name}={value}" for name, value in dataset.labels.values.items()),
    ]
    if dataset.labels.has_regions:
        lines.append("regions: " + ", ".join(f"{n}={'+'.join(map(str, v))}" for n, v in dataset.labels.regions.items()))
    return lines
