"""A trained model as one file that one can hand on, or as ONNX networks for other programs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoseg.commands.agreements import compare_onnx, compare_streamed, held_out_of
from autoseg.commands.anonymous import Anonymizer, kept_names
from autoseg.commands.decision import decided_models
from autoseg.commands.inputs import PLAN_FIRST, open_plan
from autoseg.datasets.dataset import Dataset
from autoseg.errors import DataError, UsageError
from autoseg.evaluation.crossval import CrossValidation
from autoseg.lines import LOG
from autoseg.messages import some, suggest
from autoseg.models.agreements import Agreement, Agreements, add_agreements, known_agreements
from autoseg.models.manifest import AGREEMENTS
from autoseg.planning.fingerprint import Fingerprint
from autoseg.planning.plan import Plan
from autoseg.records import dumps, from_plain, load, save
from autoseg.workspace import FoldName, Workspace, sha256

if TYPE_CHECKING:  # torch is imported when something is exported
    from autoseg.models.exporting import FoldToExport, ModelToExport
    from autoseg.models.model import Model

CROSSVAL = "crossval.json"
CARRIED = ("speeds.json", "expected_dice.json", "decision.json")  # of a model's folder; other commands make them


@dataclass(frozen=True)
class ExportOptions:
    """Which models are exported, and what of them."""

    configurations: tuple[str, ...] = ()  # empty: the recommended one
    network: str | None = None  # None: as planned
    folds: tuple[FoldName, ...] | None = None  # None: all that are trained to the end, or FULL where it alone is
    keep_case_ids: bool = False
    compare: int | None = None  # held-out cases for the table of agreements; None: as many as two minutes allow

    def __post_init__(self) -> None:
        if self.compare is not None and self.compare < 0:
            raise UsageError(f"--compare {self.compare} is not a number of cases", remedy="give 0 for none, or more")


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    size: int  # bytes
    sha256: str
    models: dict[str, tuple[FoldName, ...]]  # name -> folds
    agreements: tuple[Agreement, ...]
    left_out: tuple[str, ...]


def export(workspace: Workspace, out: Path | None, onnx: Path | None, options: ExportOptions) -> dict[str, Any]:
    """Write a file, ONNX networks, or both: what is compared with torch is then in the file.

    Raises:
        UsageError: neither is named, or `out` is not called .zip.
    """
    if out is None and onnx is None:
        raise UsageError("nothing to write is named", remedy="name a file, MODEL.zip, or a folder with --onnx DIR")
    if out is not None and (out.suffix.lower() != ".zip" or out.is_dir()):
        raise UsageError(f"{out} is not the name of a ZIP file", remedy="name it MODEL.zip")
    done: dict[str, Any] = {}
    if onnx is not None:
        done["onnx"] = export_onnx(workspace, onnx, options)
    if out is not None:
        done["model"] = export_model(workspace, out, options)
    return done


def export_model(workspace: Workspace, out: Path, options: ExportOptions = ExportOptions()) -> Exported:
    """Write trained models into one file; the previous stage of a cascade is in it, too.

    Raises:
        StateError: a model is not trained, or its weights are not finite.
    """
    from autoseg.commands.model_card import Described, model_card
    from autoseg.models.archive import open_archive
    from autoseg.models.exporting import About, write_archive

    plan = open_plan(workspace, options.network)
    measured = _measured(workspace)
    dataset = load(Dataset, workspace.dataset) if workspace.dataset.exists() else None
    names = kept_names() if options.keep_case_ids else Anonymizer.of(dataset, measured, plan)
    opened = open_asked(workspace, plan, options)
    packed = _with_comparisons(
        workspace, opened, [_packed(workspace, model, names) for model in with_previous(opened)], options.compare
    )
    models = tuple(one.model for one in packed)
    fingerprint = names.fingerprint(measured) if measured else None
    patients = _patients(dataset, names)
    scores = {one.model.name: one.scores for one in packed if one.scores is not None}
    left_out = names.left_out()
    agreements = tuple(row for one in packed for row in one.agreements.rows)
    card = model_card(Described(models, fingerprint, scores, patients, left_out, agreements))
    predicts = tuple(dict.fromkeys(model.name for model in opened))
    about = About(predicts, card, dumps(fingerprint) if fingerprint else None, options.keep_case_ids, left_out)
    write_archive(out, models, about)
    open_archive(out)  # as whoever gets it does
    done = Exported(
        path=out,
        size=out.stat().st_size,
        sha256=sha256(out),
        models={model.name: tuple(fold.fold for fold in model.folds) for model in models},
        agreements=agreements,
        left_out=left_out,
    )
    for line in _described(done):
        LOG.info(line)
    return done


def _measured(workspace: Workspace) -> Fingerprint | None:
    """The training data, measured; None where the models came without them, as imported ones do."""
    if not workspace.fingerprint.exists() and not workspace.splits.exists():
        return None
    return load(Fingerprint, workspace.fingerprint, remedy=PLAN_FIRST)


def open_asked(workspace: Workspace, plan: Plan, options: ExportOptions) -> "list[Model]":
    """The models that are to be exported, on the CPU. Raises StateError where one is not trained."""
    import torch

    from autoseg.models.model import open_model

    models = []
    pairs = []
    for asked in dict.fromkeys(options.configurations or (plan.recommended,)):
        name, chosen = plan.configuration(asked)
        pairs.append((name, chosen.network.name))
    if not options.configurations and options.network is None:  # what predict would open
        pairs = decided_models(workspace, pairs[0])
    for pair in pairs:
        model = open_model(workspace, *pair, folds=options.folds, device=torch.device("cpu"))
        for fold, how in model.left_out.items():
            LOG.info(f"note: fold {fold} of {model.name} is not trained to the end ({how}) and is not exported")
        models.append(model)
    return models


def with_previous(models: "Iterable[Model]") -> "list[Model]":
    """These and the previous stages of cascades, each once."""
    found = {one.name: one for model in models for one in (model, model.previous) if one is not None}
    return list(found.values())


@dataclass(frozen=True)
class _Packed:
    """A model as it is written, and what was read on the way."""

    model: "ModelToExport"
    scores: CrossValidation | None
    agreements: Agreements


def _packed(workspace: Workspace, model: "Model", names: Anonymizer) -> _Packed:
    """A model with the records that were made with it, none of which names anybody."""
    from autoseg.models.exporting import ModelToExport, roundtrip
    from autoseg.models.identity import weights_digest

    folder = workspace.model(model.configuration_name, model.configuration.network.name)
    folds = tuple(_fold(workspace, model, i, names) for i in range(len(model.folds)))
    previous = model.previous.name if model.previous else None
    agreements = known_agreements(folder / AGREEMENTS).of_weights([weights_digest(fold.network) for fold in folds])
    agreements = agreements.with_rows([roundtrip(ModelToExport(model.configuration_name, folds, previous))])
    records = {name: names.json(folder / name) for name in CARRIED if (folder / name).exists()}
    records[AGREEMENTS] = dumps(agreements)
    scores = _scores(folder, names)
    if scores is not None:
        records[CROSSVAL] = dumps(scores)
    return _Packed(ModelToExport(model.configuration_name, folds, previous, records), scores, agreements)


def _with_comparisons(
    workspace: Workspace, opened: "Sequence[Model]", packed: Sequence[_Packed], most: int | None
) -> list[_Packed]:
    """The same with what was compared on held-out cases, for the models that predict."""
    found = {one.model.name: one for one in packed}
    for model in opened:
        stages = [found[name].model for name in (model.name, *([model.previous.name] if model.previous else []))]
        try:
            held_out = held_out_of(workspace, model, most)
            rows = compare_streamed(held_out, stages) if held_out else []
        except DataError as error:  # an image that was changed or damaged since
            LOG.info(f"note: nothing is compared on held-out cases: {error.what}")
            continue
        one = found[model.name]
        agreements = one.agreements.with_rows(rows)
        records = {**one.model.records, AGREEMENTS: dumps(agreements)}
        found[model.name] = replace(one, model=replace(one.model, records=records), agreements=agreements)
    return list(found.values())


def _fold(workspace: Workspace, model: "Model", number: int, names: Anonymizer) -> "FoldToExport":
    """One fold of a model that is open, with what its checkpoint states about its training."""
    from autoseg.models.checkpoint import NEWEST
    from autoseg.models.exporting import FoldToExport
    from autoseg.models.versions import read_checkpoint

    fold, network = model.folds[number], model.networks[number]
    folder = workspace.fold(model.configuration_name, model.configuration.network.name, fold)
    state = read_checkpoint(folder / NEWEST, mapped=True)
    return FoldToExport(
        fold=fold,
        plan=names.plan(from_plain(Plan, state.plan, f"fold {fold}: plan")),
        network=network,
        dtype=state.runtime.dtype,
        forward_seconds=state.runtime.forward_seconds,
        epochs=state.position.epoch,
        steps=state.position.step,
        cases=len(state.train),
        plugins=state.plugins,
    )


def _scores(folder: Path, names: Anonymizer) -> CrossValidation | None:
    """The cross-validation of a model; None where there is none, or where its folds were trained since."""
    path = folder / CROSSVAL
    again = suggest("evaluate", workspace=folder.parent.parent)
    if not path.exists():
        LOG.info(f"note: {folder.name} was not evaluated: the model says nothing about its quality ({again})")
        return None
    trained = max(file.stat().st_mtime for file in folder.glob("fold_*/last.pt"))
    if path.stat().st_mtime < trained:
        LOG.info(f"note: {folder.name} was trained after it was evaluated: its scores are not exported ({again})")
        return None
    return names.scores(load(CrossValidation, path))


def _patients(dataset: Dataset | None, names: Anonymizer) -> dict[str, str]:
    """Case, as it is called in the archive -> patient; empty where the patients are not known."""
    if dataset is None or not dataset.patients_known:
        return {}
    return {names.cases.get(case.id, case.id): names.cases.get(case.patient, case.patient) for case in dataset.cases}


def _described(done: Exported) -> list[str]:
    """What was written, a line each."""
    parts = [f"{name} (fold{'s' * (len(folds) > 1)} {some(folds)})" for name, folds in done.models.items()]
    lines = [f"{done.path}: {', '.join(parts)}, {done.size / 1e6:.1f} MB, sha256 {done.sha256}"]
    lines += [str(row) for row in done.agreements]
    if done.left_out:
        lines.append(f"left out: {', '.join(done.left_out)}")
    return lines


@dataclass(frozen=True)
class ExportedNetwork:
    """One ONNX file."""

    path: Path
    model: str
    fold: FoldName
    any_size: bool  # whether images may have other sizes than the patch
    difference: float  # largest of the logits, to torch


def export_onnx(
    workspace: Workspace, out: Path, options: ExportOptions = ExportOptions()
) -> tuple[ExportedNetwork, ...]:
    """Write the network of each fold as ONNX to a folder, compared with torch, and the plan of each model beside them.

    The comparisons are kept with the models, and leave with them when they are exported as a file.

    Raises:
        StateError: a model is not trained, or its network cannot be exported.
        UsageError: the `onnx` extra is not installed, or `out` is a file.
    """
    from autoseg.models.onnx import export_fold, require_libraries

    require_libraries()
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file, expected a folder for the networks", remedy="choose another name")
    plan = open_plan(workspace, options.network)
    measured = _measured(workspace)
    dataset = load(Dataset, workspace.dataset) if workspace.dataset.exists() else None
    names = kept_names() if options.keep_case_ids else Anonymizer.of(dataset, measured, plan)
    done = []
    opened = open_asked(workspace, plan, options)
    for model in with_previous(opened):
        rows = []
        held_out = held_out_of(workspace, model, options.compare) if model in opened else None
        for number, fold in enumerate(model.folds):
            made = export_fold(model, number, out / f"{model.name}-fold_{fold}.onnx")
            size = "any batch, any size" if made.any_size else "any batch, tiles of the patch's size"
            LOG.info(f"{made.path}: {size}; largest difference to torch {made.difference:.2g}")
            rows.append(made.agreement)
            if held_out and held_out.fold == fold:
                on_cases = compare_onnx(held_out, made.path)
                LOG.info("\n".join(map(str, on_cases)))
                rows += on_cases
            done.append(ExportedNetwork(made.path, model.name, fold, made.any_size, made.difference))
        save(out / f"{model.name}.json", names.plan(model.plan))
        folder = workspace.model(model.configuration_name, model.configuration.network.name)
        add_agreements(folder / AGREEMENTS, rows)
    return tuple(done)
