"""Reporting checklists, filled as far as the records of a run can: CLAIM 2024, and the properties of Metrics Reloaded.

Items of CLAIM are named in our words, with their numbers in the 2024 update (Tejani et al., Radiology: Artificial
Intelligence 2024, 6(4):e240300). Number and subject of all 44 were compared with the checklist on its group's site,
"CLAIM: Explanation, Elaboration and Examples". The properties are those by which Metrics Reloaded (Maier-Hein, Reinke
et al., Nature Methods 2024) chooses metrics for semantic segmentation. What only the author knows is left open, with
what is expected there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from autoseg import __version__
from autoseg.messages import counted, some
from autoseg.planning.request import text
from autoseg.report.gathered import Gathered
from autoseg.report.numbers import size_unit


@dataclass(frozen=True)
class Item:
    """One item of a checklist."""

    number: str
    topic: str
    filled: str  # what the run says; "": nothing
    author: str  # what only the author can add; "": nothing

    @property
    def state(self) -> str:
        return "filled" if self.filled and not self.author else "partly" if self.filled else "open"


Fill = Callable[[Gathered], str]


def _nothing(of: Gathered) -> str:
    return ""


def _kind(of: Gathered) -> str:
    dims = of.plan.configurations[of.configuration].dims if of.configuration in of.plan.configurations else 3
    return f"deep learning: {dims}-D segmentation network ({of.network.replace('_', ' ')})"


def _sources(of: Gathered) -> str:
    return f"{of.dataset.name}, {of.dataset.layout} layout" if of.dataset else ""


def _preprocessing(of: Gathered) -> str:
    configuration = of.plan.configurations.get(of.configuration)
    schemes = dict.fromkeys(one.scheme for one in of.plan.normalization)
    spacing = f"resampled to {text(configuration.spacing)} mm; " if configuration else ""
    return f"cropped to nonzero voxels; {spacing}intensities: {', '.join(schemes)}"


def _partitions(of: Gathered) -> str:
    if of.splits is None:
        return ""
    test = f"; {counted(len(of.splits.test), 'test case')} held out" if of.splits.test else ""
    return f"{counted(len(of.splits.splits), 'fold')}, balanced by labels and their size, seed {of.splits.seed}{test}"


def _disjoint(of: Gathered) -> str:
    if of.dataset is None:
        return ""
    return "patient" if of.dataset.patients_known else "case: the data name no patients"


def _counts(of: Gathered) -> str:
    if of.dataset is None:
        return ""
    patients = len({case.patient for case in of.dataset.cases})
    return f"{counted(len(of.dataset.cases), 'case')} of {counted(patients, 'patient')} used"


def _model(of: Gathered) -> str:
    configuration = of.plan.configurations.get(of.configuration)
    if configuration is None:
        return ""
    network = configuration.network
    return (
        f"{network.name}, {len(network.strides)} stages, {network.features[0]} to {network.features[-1]} features; "
        f"input {counted(len(of.plan.channels), 'channel')}, patch {text(configuration.patch_size)}; section 2"
    )


def _training(of: Gathered) -> str:
    training = of.plan.training
    return (
        f"{training.optimizer}, {training.schedule}, learning rate {training.learning_rate:g}, {training.loss}, "
        f"augmentation {training.augmentation}, seed {training.seed}; curves in section 3"
    )


def _initial(of: Gathered) -> str:
    begun = [fold.begun for fold in of.folds if fold.begun]
    if not begun:
        return "not known: there is no checkpoint"
    given = {one.basis.init_from for one in begun} - {None}
    return f"initialised from {some(sorted(map(str, given)))}" if given else "random, seeded"


def _software(of: Gathered) -> str:
    """autoseg as it was when folds were trained, or where they do not say, as it is."""
    used = [one.machine.versions.get("autoseg", "") for fold in of.folds for one in fold.sessions]
    return f"autoseg {' and '.join(dict.fromkeys(filter(None, used))) or __version__}"


def _metrics(of: Gathered) -> str:
    first = next(iter(of.scores.summary.values()), {}) if of.scores else {}
    return ", ".join(first)


def _results(of: Gathered) -> str:
    return "section 4: mean, interval, median and quartiles of each label" if of.scores else ""


def _failures(of: Gathered) -> str:
    return "section 5: the worst cases with their largest error" if of.scores else ""


def _robustness(of: Gathered) -> str:
    return "scores by fold in section 4" if of.scores and len(of.scores.folds) > 1 else ""


def _internal(of: Gathered) -> str:
    if of.scores is None:
        return ""
    return f"cross-validation of {counted(len(of.scores.cases), 'case')} in {counted(len(of.scores.folds), 'fold')}"


CLAIM: tuple[tuple[str, str, Fill, str], ...] = (
    ("1", "Title: an AI study, and which technology", _kind, "put it into the title"),
    ("2", "Abstract: design, methods, results, conclusions", _nothing, "the abstract"),
    ("3", "Background and intended use", _nothing, "the clinical question and the role of the segmentation"),
    ("4", "Aims and hypotheses", _nothing, "the aims"),
    ("5", "Prospective or retrospective", _nothing, "which of both"),
    ("6", "Goal of the study", _nothing, "such as model creation, feasibility, comparison"),
    ("7", "Sources of the data", _sources, "institutions, dates, permission, where they can be had"),
    ("8", "Inclusion and exclusion criteria", _nothing, "the criteria"),
    ("9", "Preprocessing", _preprocessing, ""),
    ("10", "Selection of subsets of the data", _nothing, "what was cropped or chosen before autoseg saw the data"),
    ("11", "De-identification", _nothing, "how identities were removed"),
    ("12", "Missing data", _nothing, "what happened to incomplete cases"),
    ("13", "Image acquisition protocol", _nothing, "scanners, sequences, parameters"),
    ("14", "Methods by which the reference standard was obtained", _nothing, "who outlined what, with which tool"),
    ("15", "Why this reference standard", _nothing, "the reasons"),
    ("16", "Source of the annotations", _nothing, "qualification and preparation of the annotators"),
    ("17", "Annotation of the test set", _nothing, "whether it differs from that of the training data"),
    ("18", "Variability within and between annotators", _nothing, "measured, or not"),
    ("19", "How data were assigned to partitions", _partitions, ""),
    ("20", "Level at which partitions are disjoint", _disjoint, ""),
    ("21", "Intended sample size", _nothing, "how it was determined"),
    ("22", "Description of the model", _model, ""),
    ("23", "Software", lambda of: f"{_software(of)}; versions of libraries above", ""),
    ("24", "Initialisation of the parameters", _initial, ""),
    ("25", "Training", _training, ""),
    ("26", "How the final model was selected", lambda of: "weights at the end of the schedule, of every fold", ""),
    ("27", "Ensembles", lambda of: "mean of the folds' probabilities, for new images", ""),
    ("28", "Metrics", _metrics, "why these: see the table below"),
    ("29", "Statistical significance and uncertainty", lambda of: "bootstrap over patients, 95 %" if of.scores else "",
     ""),
    ("30", "Robustness or sensitivity", _robustness, "other scanners, protocols, subgroups"),
    ("31", "Explainability", _nothing, "if it was examined"),
    ("32", "Evaluation on internal data", _internal, ""),
    ("33", "Testing on external data", _nothing, "data of another institution, or that there are none"),
    ("34", "Registration of a clinical trial", _nothing, "the number, or that it is not one"),
    ("35", "Numbers of patients or examinations, included and excluded", _counts, "those excluded, and why"),
    ("36", "Demographic and clinical characteristics of each partition", _nothing, "for each fold and the test set"),
    ("37", "Performance with its uncertainty", _results, ""),
    ("38", "Estimates of diagnostic performance", _nothing, "where the segmentation serves a diagnosis"),
    ("39", "Analysis of incorrect results", _failures, "what they have in common"),
    ("40", "Limitations", _nothing, "bias, generalisability"),
    ("41", "Implications for practice", _nothing, "the intended use"),
    ("42", "Protocol and further technical detail", lambda of: "this page, and plan.json of the workspace", "where"),
    ("43", "Availability of software, trained model and data", lambda of: "autoseg, Apache-2.0", "of model and data"),
    ("44", "Funding and the funders' role", _nothing, "the sources"),
)  # fmt: skip


def _small(of: Gathered) -> str:
    """Equivalent diameter of the median object of each label, in voxels of its case."""
    if of.fingerprint is None:
        return ""
    parts = []
    for label in of.fingerprint.labels:
        voxels = [n for case in of.fingerprint.cases if (n := case.class_voxels.get(label, 0)) > 0]
        if voxels:
            parts.append(f"{label}: {2 * (3 * float(np.median(voxels)) / (4 * math.pi)) ** (1 / 3):.0f} voxels across")
    return f"diameter of a ball of the median size: {some(parts)}" if parts else ""


def _variable(of: Gathered) -> str:
    if of.fingerprint is None:
        return ""
    parts = []
    for label in of.fingerprint.labels:
        sizes = [
            voxels * math.prod(case.spacing)
            for case in of.fingerprint.cases
            if (voxels := case.class_voxels.get(label, 0)) > 0
        ]
        if sizes:
            parts.append(f"{label} {np.quantile(sizes, 0.95) / np.quantile(sizes, 0.05):.1f}")
    return f"95th over 5th percentile of the size: {some(parts)}" if parts else ""


def _imbalance(of: Gathered) -> str:
    if of.fingerprint is None:
        return ""
    totals = {n: sum(c.class_voxels.get(n, 0) for c in of.fingerprint.cases) for n in of.fingerprint.labels}
    every = sum(math.prod(case.shape) for case in of.fingerprint.cases)
    return "share of all voxels: " + some([f"{name} {100 * count / every:.3g} %" for name, count in totals.items()])


def _several(of: Gathered) -> str:
    """How many connected components each label has."""
    if of.fingerprint is None:
        return ""
    parts = []
    for label in of.fingerprint.labels:
        counts = [case.components[label].count for case in of.fingerprint.cases if label in case.components]
        if counts:
            parts.append(f"{label} {np.median(counts):.0f} (at most {max(counts)})")
    return f"components in a case, median: {some(parts)}" if parts else ""


def _empty(of: Gathered) -> str:
    if of.fingerprint is None:
        return ""
    total = len(of.fingerprint.cases)
    absent = {n: sum(not c.class_voxels.get(n, 0) for c in of.fingerprint.cases) for n in of.fingerprint.labels}
    parts = [f"{name} in {count} of {total}" for name, count in absent.items() if count]
    return f"references without the label: {some(parts)}" if parts else "every case has every label"


def _dependent(of: Gathered) -> str:
    if of.dataset is None or not of.dataset.patients_known:
        return "the data name no patients: each case counts as independent"
    patients = len({case.patient for case in of.dataset.cases})
    return f"{counted(len(of.dataset.cases), 'case')} of {counted(patients, 'patient')}; intervals are over patients"


def _unit(of: Gathered) -> str:
    return f"sizes in {size_unit(of.fingerprint.cases)[0]}, distances in mm" if of.fingerprint else ""


PROPERTIES: tuple[tuple[str, Fill, str], ...] = (
    ("Category of the problem", lambda of: "semantic segmentation", ""),
    ("Importance of boundaries", _nothing, "if high: report NSD or HD95 beside Dice"),
    ("Importance of the volume", _nothing, "if high: report the agreement of sizes in section 4"),
    ("Importance of the centre line", _nothing, "if the structure is a tube: centre-line Dice"),
    ("Units of measurement", _unit, ""),
    ("Small structures", _small, "below about 10 voxels Dice changes much with every voxel"),
    ("Sizes that vary much", _variable, ""),
    ("Several objects of one label", _several, "if objects are counted: lesion-wise detection"),
    ("Imbalance of classes", _imbalance, ""),
    ("Quality of the reference", _nothing, "variability between annotators sets the tolerance of NSD"),
    ("Cases that are not independent", _dependent, ""),
    ("Empty references", _empty, ""),
    ("Unequal cost of errors", _nothing, "if a missed voxel is worse than an extra one: F-beta"),
)


def claim(of: Gathered) -> list[Item]:
    """CLAIM 2024, item by item."""
    return [Item(number, topic, fill(of), author) for number, topic, fill, author in CLAIM]


def properties(of: Gathered) -> list[Item]:
    """The properties by which Metrics Reloaded chooses metrics."""
    return [Item(str(i), topic, fill(of), author) for i, (topic, fill, author) in enumerate(PROPERTIES, start=1)]
