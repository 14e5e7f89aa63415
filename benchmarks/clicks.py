"""What clicks bring: a network trained with prompts beside other ways to correct a mask, on the same held-out cases.

    python benchmarks/clicks.py WORKSPACE --out FOLDER [--scratch WORKSPACE2] [--fold 0] [--cases 32] [--most 20]

WORKSPACE has a trained fold of the recommended configuration and one that continues it with prompts
(`autoseg train -f 0 --time-budget 5m`, then `autoseg train --prompts -f 0 --time-budget 10m`). Every way begins with
the automatic mask and answers the same simulated person (`evaluation.click_curves`): the deepest voxel of the largest
error.

    prompts      the network with prompts; at 0 clicks, the automatic segmentation by that network
    after        the same, but the mask that is corrected is that of the network it continues
    ball         the ball that stands for a click is painted in the label that was said, and nothing else changes
    graph cut    the mask corrected by a minimum cut, as in GrabCut: intensities of the labels (histograms of the
                 automatic mask), edges by contrast, clicks as seeds; the label of the click against the
                 rest, in a window of WINDOW mm about it
    scratch      a network with prompts that was trained from nothing for as long as both others together (WORKSPACE2)

Also: what labelling all cases would take (`minutes`), by the assumptions that are stated there.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from autoseg.commands.speeds import held_out_by_fold
from autoseg.datasets.dataset import LoadedCase, load_case
from autoseg.evaluation.click_curves import TARGETS, ClickedCase, ClickTable, correct, describe, mean_dice
from autoseg.evaluation.paired import interval_of_difference
from autoseg.imaging.prompts import Click, Prompt, draw
from autoseg.inference.interactive import Refinement
from autoseg.models.model import Model, open_model
from autoseg.nn.devices import choose_device
from autoseg.workspace import Workspace

WINDOW = 5.0  # mm on either side of a click, in which a graph is cut; this and the weights are the best of 48 settings
BINS = 32  # of a histogram of intensities
SMOOTH = 2.0  # weight of an edge between voxels of equal intensity
PRIOR = 1.0  # weight of the automatic mask
LIKELY = 0.25  # weight of the logarithm of a ratio of likelihoods
SURE = 10**6  # weight of a seed
SCALE = 100  # weights are whole numbers

# What a person does, in seconds; stated in the table
SECONDS_OF_A_CLICK = 5.0  # to look for what is wrong, aim, click, and look at the answer
SECONDS_OF_A_SLICE = 30.0  # to outline the labels of a slice by hand
SECONDS_OF_A_PIECE = 8.0  # to find a wrong piece of a slice and paint it right

Way = Callable[[LoadedCase, np.ndarray], Callable[[Prompt], np.ndarray]]


def paint(model: Model, loaded: LoadedCase, mask: np.ndarray) -> Callable[[Prompt], np.ndarray]:
    """A click paints its ball."""
    mask, radius = mask.copy(), model.configuration.prompts.radius_mm

    def answer(prompt: Prompt) -> np.ndarray:
        ball = draw(
            [prompt], mask.shape, loaded.geometry.spacing, radius_mm=radius, num_labels=model.plan.labels.num_labels,
            lower=(0, 0, 0),
        )[prompt.index]  # fmt: skip
        mask[ball == 1] = prompt.index
        return mask

    return answer


def cut(model: Model, loaded: LoadedCase, mask: np.ndarray) -> Callable[[Prompt], np.ndarray]:
    """A click is a seed of a minimum cut in a window about it."""
    mask, automatic = mask.copy(), mask.copy()
    image = loaded.to_stored(loaded.image)[0].astype(np.float64)
    low, high = np.percentile(image, [0.5, 99.5])
    bins = np.clip(((image - low) / max(high - low, 1e-9) * BINS).astype(int), 0, BINS - 1)
    sigma = max(np.abs(np.diff(image, axis=-1)).mean(), 1e-9)
    radius, spacing = model.configuration.prompts.radius_mm, loaded.geometry.spacing
    clicks: list[Click] = []

    def answer(prompt: Prompt) -> np.ndarray:
        clicks.append(prompt)
        box = tuple(
            slice(max(0, i - int(WINDOW / step)), i + int(WINDOW / step) + 1)
            for i, step in zip(prompt.at, spacing, strict=True)
        )
        said = prompt.index or int(mask[prompt.at])  # background was clicked: the label that is wrong there
        inside = np.bincount(bins[automatic == said], minlength=BINS) + 1.0
        outside = np.bincount(bins[automatic != said], minlength=BINS) + 1.0
        ratio = np.log(inside / inside.sum()) - np.log(outside / outside.sum())
        unary = LIKELY * ratio[bins[box]] + np.where(mask[box] == said, PRIOR, -PRIOR)
        drawn = draw(
            clicks, mask.shape, spacing, radius_mm=radius, num_labels=model.plan.labels.num_labels, lower=(0, 0, 0)
        )[(slice(None), *box)]
        seeds = np.where(drawn[said] == 1, 1, np.where(np.delete(drawn, said, axis=0).max(axis=0) == 1, -1, 0))
        found = minimum_cut(image[box], unary, seeds, sigma)
        part = mask[box]
        part[(part == said) & ~found] = 0
        part[found] = said
        part[(seeds == -1) & (part == said)] = 0
        if prompt.index:
            mask[prompt.at] = prompt.index
        return mask

    return answer


def minimum_cut(image: np.ndarray, unary: np.ndarray, seeds: np.ndarray, sigma: float) -> np.ndarray:
    """Voxels on the side of the object: bool (Z, Y, X). Boykov and Jolly, ICCV 2001, by scipy's maximum flow."""
    numbers = np.arange(image.size).reshape(image.shape)
    source, sink = image.size, image.size + 1
    starts, ends, weights = [], [], []
    for axis in range(image.ndim):
        low, high = np.split(np.arange(image.shape[axis]), [-1])[0], np.arange(1, image.shape[axis])
        a, b = numbers.take(low, axis).ravel(), numbers.take(high, axis).ravel()
        contrast = image.ravel()[a] - image.ravel()[b]
        weight = SMOOTH * np.exp(-(contrast**2) / (2 * sigma**2))
        starts += [a, b]
        ends += [b, a]
        weights += [weight, weight]
    flat, given = unary.ravel(), seeds.ravel()
    to_object = np.where(given == 1, SURE, np.where(given == -1, 0, np.maximum(flat, 0)))
    to_rest = np.where(given == -1, SURE, np.where(given == 1, 0, np.maximum(-flat, 0)))
    starts += [np.full(image.size, source), numbers.ravel()]
    ends += [numbers.ravel(), np.full(image.size, sink)]
    weights += [to_object, to_rest]
    whole = np.round(SCALE * np.concatenate(weights)).astype(np.int32)
    graph = sparse.csr_matrix(
        (whole, (np.concatenate(starts), np.concatenate(ends))), shape=(image.size + 2,) * 2, dtype=np.int32
    )
    residual = graph - csgraph.maximum_flow(graph, source, sink).flow
    residual.data[residual.data < 0] = 0
    residual.eliminate_zeros()
    reached = csgraph.breadth_first_order(residual, source, return_predecessors=False)
    found = np.zeros(image.size + 2, bool)
    found[reached] = True
    return found[: image.size].reshape(image.shape)


def measure(ways: dict[str, Way], cases, plan, most: int, masks):
    """Every way on every case: the cases as they were clicked; automatic mask, reference and last mask of each."""
    labels, found, seen = plan.labels, {name: [] for name in ways}, {name: [] for name in ways}
    for case in cases:
        loaded = load_case(
            case, labels, channels=plan.channels, orientation=plan.orientation, axis_order=plan.axis_order
        )
        reference = loaded.to_stored(loaded.target)
        for name, way in ways.items():
            mask = masks(name, loaded)
            last, answered = [mask], way(loaded, mask)

            def answer(prompt: Prompt, answered=answered, last=last) -> np.ndarray:
                last[0] = answered(prompt)
                return last[0]

            dice, seconds = correct(
                mask, reference, loaded.geometry.spacing, answer, labels.scored, ignored=labels.ignore_index, most=most
            )
            found[name].append(ClickedCase(case.id, case.patient, tuple(dice), tuple(seconds)))
            seen[name].append((mask, reference, np.array(last[0])))
    return found, seen


def minutes(
    cases: list[ClickedCase], masks: list[tuple[np.ndarray, np.ndarray, np.ndarray]], scored, target: float, most: int
) -> dict[str, float]:
    """Minutes of a person until every case has a Dice of `target`.

    Args:
        masks: of each case the automatic mask, the reference, and the mask after the last click.

    Returns:
        Outlined from nothing: all slices with a label. Corrected by hand: the automatic mask, wrong piece by wrong
        piece, the largest first. By clicks: so many as reach the target; where none does, the rest by hand.
    """
    nothing = by_hand = clicked = 0.0
    for case, (automatic, reference, last) in zip(cases, masks, strict=True):
        nothing += SECONDS_OF_A_SLICE * sum(bool((plane > 0).any()) for plane in reference)
        by_hand += SECONDS_OF_A_PIECE * pieces_to(automatic, reference, scored, target)
        clicked += SECONDS_OF_A_CLICK * case.clicks_to(target, most)
        if max(case.dice) < target:
            clicked += SECONDS_OF_A_PIECE * pieces_to(last, reference, scored, target)
    return {"from nothing": nothing / 60, "automatic, by hand": by_hand / 60, "automatic, by clicks": clicked / 60}


def pieces_to(mask: np.ndarray, reference: np.ndarray, scored, target: float) -> int:
    """How many wrong pieces of slices, the largest first, have to be painted right until a Dice is reached."""
    numbers, count = np.zeros(mask.shape, int), 0
    for z in range(len(mask)):
        for index in np.unique(reference[z][mask[z] != reference[z]]):
            found, more = ndimage.label((reference[z] == index) & (mask[z] != index))
            numbers[z][found > 0] = found[found > 0] + count
            count += more
    order = 1 + np.argsort(-np.bincount(numbers.ravel(), minlength=count + 1)[1:], kind="stable")
    mask = mask.copy()
    for done, number in enumerate(order):
        if mean_dice(mask, reference, scored) >= target:
            return done
        piece = numbers == number
        mask[piece] = reference[piece]
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, default=None)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--cases", type=int, default=32)
    parser.add_argument("--most", type=int, default=20)
    parser.add_argument("--only", nargs="+", default=None, help="names of the ways to measure")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    workspace, device = Workspace(options.workspace), choose_device("cpu")
    name, network, held_out = held_out_by_fold(workspace, None, None)
    cases = held_out[options.fold][: options.cases]
    base = open_model(workspace, name, network, folds=[options.fold], device=device)
    prompted = open_model(workspace, f"{name}_prompts", network, folds=[options.fold], device=device)

    def by(model: Model, mask_of_base: bool) -> Way:
        def way(loaded: LoadedCase, mask: np.ndarray) -> Callable[[Prompt], np.ndarray]:
            refinement = Refinement(model, loaded, mask=mask if mask_of_base else None)

            def answer(prompt: Prompt) -> np.ndarray:
                refinement.add(prompt)
                return refinement.labels

            return answer

        return way

    ways: dict[str, Way] = {
        "prompts": by(prompted, False),
        "after": by(prompted, True),
        "ball": lambda loaded, mask: paint(prompted, loaded, mask),
        "graph cut": lambda loaded, mask: cut(prompted, loaded, mask),
    }
    scratch = None
    if options.scratch:
        scratch = open_model(
            Workspace(options.scratch), f"{name}_prompts", network, folds=[options.fold], device=device
        )
        ways["scratch"] = by(scratch, False)
    if options.only:
        ways = {key: way for key, way in ways.items() if key in options.only}

    from autoseg.inference.member import EnsembleMember, decide

    members = {"prompts": EnsembleMember(prompted), "base": EnsembleMember(base)}
    if scratch:
        members["scratch"] = EnsembleMember(scratch)

    def masks(way: str, loaded: LoadedCase) -> np.ndarray:
        member = members[way if way in ("prompts", "scratch") else "base"]
        return loaded.to_stored(decide([member], loaded)).copy()

    began = time.perf_counter()
    found, pairs = measure(ways, cases, base.plan, options.most, masks)
    tables = {
        key: ClickTable(1, f"{name}_prompts", network, {}, options.most, tuple(clicked))
        for key, clicked in found.items()
    }
    for key, table in tables.items():
        print(f"\n{key}\n{describe(table)}")
        (options.out / f"{key.replace(' ', '_')}.json").write_text(
            json.dumps([[c.case, c.patient, c.dice, c.seconds] for c in table.cases])
        )
    patients = [case.patient for case in cases]
    if {"prompts", "after"} <= set(tables):
        lost = [a.after(0) - b.after(0) for a, b in zip(tables["prompts"].cases, tables["after"].cases, strict=True)]
        print(f"\n0 clicks, prompts minus base: {np.mean(lost):+.4f}, {interval_of_difference(lost, patients)}")
    for key in tables:
        for clicks in (1, 3, 5, 10):
            if key != "prompts" and "prompts" in tables:
                more = [
                    a.after(clicks) - b.after(clicks)
                    for a, b in zip(tables["prompts"].cases, tables[key].cases, strict=True)
                ]
                low, high = interval_of_difference(more, patients)
                print(f"{clicks:3d} clicks, prompts minus {key}: {np.mean(more):+.4f} ({low:+.4f} to {high:+.4f})")
    print(
        f"\nminutes of a person for {len(cases)} cases, at {SECONDS_OF_A_CLICK:g} s a click, {SECONDS_OF_A_SLICE:g} s "
        f"a slice outlined, {SECONDS_OF_A_PIECE:g} s a wrong piece of a slice painted right"
    )
    first = next(iter(tables))
    for target in TARGETS:
        found_minutes = minutes(list(tables[first].cases), pairs[first], base.plan.labels.scored, target, options.most)
        print(f"  to a Dice of {target:.2f}: " + ", ".join(f"{k} {v:.1f}" for k, v in found_minutes.items()))
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
