"""Where the networks looked in the worst, median and best held-out case: `autoseg report --saliency LABEL`."""

from autoseg.datasets.dataset import load_case
from autoseg.errors import StateError
from autoseg.imaging.formats.readers import is_dicom, read_labels
from autoseg.imaging.geometry import reorient
from autoseg.lines import LOG
from autoseg.messages import some, suggest
from autoseg.workspace import Workspace


def explain_held_out(workspace: Workspace, configuration: str | None, network: str | None, text: str) -> list[str]:
    """Explain a label in three held-out cases, each by the one fold that did not train on it.

    Maps go to the folder `saliency` of the model, where the report finds them.

    Args:
        text: LABEL, or LABEL@Z,Y,X.

    Returns:
        The cases.

    Raises:
        StateError: no case is scored yet, or a fold is not trained. UsageError: the model has no such label.
    """
    from autoseg.inference.saliency import How, explain, head_of, parse_asked
    from autoseg.inference.saliency_files import write_saliency
    from autoseg.models.model import open_model
    from autoseg.nn.devices import choose_device
    from autoseg.report.gallery import segmentation_of
    from autoseg.report.gathered import gather
    from autoseg.report.looked import folder_of, to_explain

    asked, of = parse_asked(text), gather(workspace, configuration, network)
    head_of(asked, of.plan.heads)
    cases = [case for case in to_explain(of) if case in of.cases]
    if of.scores is None or not cases:
        remedy = "score the held-out cases first: " + suggest("evaluate", workspace=workspace.root)
        raise StateError(f"{workspace.root}: there is no scored case to explain", remedy=remedy)
    folds = {case.case: fold.fold for fold in of.scores.folds for case in fold.cases}
    device = choose_device("auto")
    for case in cases:
        fold = folds[case]
        model = open_model(workspace, of.configuration, of.network, folds=[fold], device=device)
        plan = model.plan
        loaded = load_case(
            of.cases[case], None, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order
        )
        path = segmentation_of(workspace.fold(of.configuration, of.network, fold) / "validation", case)
        like = of.cases[case].images[0] if is_dicom(path) else None
        stored = plan.labels.to_indices(
            read_labels(path, plan.labels.colours, like=like, names=plan.labels.values).array
        )
        labels = reorient(reorient(stored, *loaded.orientation), loaded.axis_order, (0, 0, 0))
        found = explain([model], loaded, labels, asked)
        write_saliency(folder_of(workspace, of.configuration, of.network) / case, loaded, How(), [found])
    LOG.info(f"explained {asked} in {some(cases)}, each by the fold that held it out")
    return cases
