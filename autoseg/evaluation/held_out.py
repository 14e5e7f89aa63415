"""How unsure a fold is of the cases it did not train on: the scores that expected Dice is learnt from.

Only the fold that held a case out looks at it, over all its flips, as `predict` runs each fold over a new image.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from autoseg.datasets.dataset import Case, load_case
from autoseg.evaluation.crossval import CrossValidation
from autoseg.evaluation.expected_dice import ScoredCase, described, digest_of, groups_of
from autoseg.inference.agreement import SCORES, Agreement, AgreementCounter
from autoseg.inference.ensemble import split
from autoseg.inference.member import EnsembleMember, Preparations, decide
from autoseg.inference.options import InferenceOptions
from autoseg.models.model import Model
from autoseg.workspace import FoldName


def agreements(
    model: Model,
    cases: Sequence[Case],
    options: InferenceOptions = InferenceOptions(),
    segment: Callable[..., np.ndarray] = decide,
) -> Iterator[tuple[str, Agreement]]:
    """Case id and agreement of the flips of a model of one fold, for each of its held-out cases.

    Args:
        segment: (members, loaded, consumers): runs the members over an image and hands their logits to the consumers.

    Raises:
        DataError: an image cannot be read.
    """
    ensemble = split([model], options, by="flips")
    shared = Preparations()
    members = [EnsembleMember(part, ensemble.options, shared) for part in ensemble.models]
    plan = model.plan
    for case in cases:
        loaded = load_case(case, None, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order)
        counter = AgreementCounter(plan.heads, ensemble.fold_of)
        segment(members, loaded, consumers=[counter])
        shared.forget()
        yield case.id, counter.result()


def scored_cases(
    result: CrossValidation, found: Mapping[str, Agreement], patients: Mapping[str, str]
) -> list[ScoredCase]:
    """The held-out cases with their scores and their Dice.

    Args:
        result: of the cross-validation.
        found: case -> agreement.
        patients: case -> patient.
    """
    where = {score.case: fold.fold for fold in result.folds for score in fold.cases}
    groups = groups_of([(case, str(fold), patients.get(case, case)) for case, fold in where.items()])
    cases = []
    for score in result.cases:
        if score.case not in found:
            continue
        dice = {name: metrics["dice"] for name, metrics in score.scores.items()}
        cases.append(
            ScoredCase(
                case=score.case,
                group=groups[score.case],
                fold=str(where[score.case]),
                scores={name: found[score.case].of(name) for name in SCORES},
                dice={name: value for name, value in dice.items() if value is not None},
            )
        )
    return cases


def weights_of(models: Sequence[Model]) -> dict[str, str]:
    """Digest of the weights of each fold of models with the same configuration."""
    return {
        str(fold): digest_of({name: value.cpu().float().numpy() for name, value in network.state_dict().items()})
        for model in models
        for fold, network in zip(model.folds, model.networks, strict=True)
    }


def described_options(model: Model, options: InferenceOptions) -> str:
    """How a model is run, in the words by which an expected Dice is compared with what `predict` does."""
    mirroring = model.plan.training.test_time_mirroring if options.mirroring is None else options.mirroring
    planned = model.plan.training.mirror_axes if mirroring else ()
    axes = [axis for axis in planned if options.mirror_axes is None or axis in options.mirror_axes]
    return described(options.step, sorted(axes), options.tile, even_flips=options.even_flips)


def agree_on_all(
    models: Callable[[FoldName], Model],
    cases: Mapping[FoldName, Sequence[Case]],
    options: InferenceOptions = InferenceOptions(),
) -> tuple[dict[str, Agreement], dict[str, str]]:
    """Agreement on all held-out cases, each by its own fold, and the digests of the folds' weights.

    Args:
        models: fold -> model of that fold alone; one is held at a time.
        cases: fold -> its held-out cases.
    """
    found: dict[str, Agreement] = {}
    weights: dict[str, str] = {}
    for fold, held_out in cases.items():
        model = models(fold)
        weights |= weights_of([model])
        found |= dict(agreements(model, held_out, options))
    return found, weights
