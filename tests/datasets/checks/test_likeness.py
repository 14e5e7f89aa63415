"""Nearly identical images: copies that were changed in every way are found, and different images are not."""

import numpy as np
import pytest
from scipy import ndimage

import tiny
from autoseg.datasets.checks.likeness import (
    FINE,
    FINE_FLAT,
    LOWEST_LIMIT,
    SMALL_SET_LIMIT,
    _cells,
    _partial_correlation,
    alike,
    limit_of,
    thumbnail,
)
from autoseg.datasets.checks.problems import check
from autoseg.datasets.dataset import discover

SHAPE = (24, 30, 27)
ANATOMY = ndimage.gaussian_filter(np.random.default_rng(99).normal(size=SHAPE), 4) * 60  # what all images share


def person(seed: int, shape=SHAPE) -> np.ndarray:
    """An image that shares its anatomy with the others, and has details of its own."""
    own = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), [min(2, n - 1) for n in shape])
    return (own * 16 + (ANATOMY if shape == SHAPE else 0)) * 20 + 100


def compared(images: dict[str, np.ndarray], patients: dict[str, str] | None = None) -> set[tuple[str, str]]:
    found = alike({name: thumbnail(image) for name, image in images.items()}, patients or {n: n for n in images})
    assert all(pair.similarity >= found.limit for pair in found.pairs)
    return {(pair.first, pair.second) for pair in found.pairs}


def people(count: int = 14) -> dict[str, np.ndarray]:
    return {f"p{number:02d}": person(number) for number in range(count)}


CHANGES = {
    "nothing": lambda image: image,
    "noise": lambda image: image + np.random.default_rng(0).normal(0, 0.3 * image.std(), image.shape),
    "resampled": lambda image: ndimage.zoom(image, (0.6, 0.7, 1.3), order=1),
    "flipped": lambda image: image[::-1, :, ::-1],
    "scaled": lambda image: 0.01 * image - 3,
    "gamma": lambda image: ((image - image.min()) / np.ptp(image)) ** 1.4,
    "shifted": lambda image: ndimage.shift(image, (2, -2, 1), order=0, mode="nearest"),
    "a bright voxel": lambda image: np.where(np.arange(image.size).reshape(image.shape) == 77, 1e7, image),
    "all": lambda image: -5 + 2 * ndimage.zoom(np.roll(image, 1, axis=1)[:, ::-1], 0.8, order=1),
}


@pytest.mark.thorough
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_nothing_else(change):
    images = people()
    assert compared(images | {"q": CHANGES[change](images["p03"])}) == {("p03", "q")}


def test_a_clean_set_is_silent_although_its_images_look_alike():
    images = people()
    flat = [image.ravel() for image in images.values()]
    assert np.corrcoef(flat)[np.triu_indices(len(flat), 1)].min() > 0.5  # plainly correlated: they share an anatomy
    assert compared(images) == set()


def test_images_of_one_patient_may_be_alike():
    images = people() | {"q": CHANGES["noise"](person(3))}
    assert compared(images, {name: "one" if name in ("p03", "q") else name for name in images}) == set()


def test_many_copies_do_not_raise_the_limit_beyond_themselves():
    images = people(12)
    copies = {f"q{name[1:]}": CHANGES["noise"](image) for name, image in images.items()}
    assert compared(images | copies) == {(name, f"q{name[1:]}") for name in images}


def test_few_images_are_compared_strictly():
    few = {"a": person(1), "b": person(2), "c": CHANGES["scaled"](person(1))}
    assert compared(few) == {("a", "c")}
    assert limit_of([0.5, 0.5], 9) == SMALL_SET_LIMIT


@pytest.mark.parametrize("change", [lambda a: a, lambda a: np.rot90(a, axes=(1, 2)), lambda a: a[:, ::-1]])
def test_flat_images_are_compared_over_quarter_turns_and_never_with_volumes(change):
    images = {f"p{number:02d}": person(number, (1, 60, 70)) for number in range(12)}
    assert compared(images | {"q": change(images["p05"]), "volume": person(3), "other": person(4)}) == {("p05", "q")}


def test_the_limit_is_four_robust_deviations_above_the_median():
    z = np.array([1.20, 1.21, 1.22, 1.23, 1.24])  # median 1.22, median deviation 0.01
    assert limit_of([*np.tanh(z)], 50) == pytest.approx(np.tanh(1.22 + 4 * 1.4826 * 0.01))
    assert limit_of([0.1, 0.2, 0.3], 50) == LOWEST_LIMIT


def test_cells_average_whole_and_part_voxels():
    assert np.allclose(_cells(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    assert np.allclose(_cells(3, 2), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]])
    assert np.allclose(_cells(2, 4), [[1, 0], [1, 0], [0, 1], [0, 1]])


def test_a_thumbnail_has_no_size_and_no_unit():
    image = person(1)
    small = thumbnail(image)
    assert small.shape == FINE
    assert small.dtype == np.float16
    assert abs(small.astype(float).mean()) < 1e-4
    assert np.linalg.norm(small.astype(float)) == pytest.approx(1, abs=1e-3)
    assert np.abs(small - thumbnail(image * 1000 - 7)).max() < 1e-3
    assert thumbnail(image[:, :, :1]).shape == FINE_FLAT
    assert not thumbnail(np.full((3, 4, 5), 7)).any()
    assert np.isfinite(thumbnail(np.full((3, 4, 5), np.nan))).all()
    assert thumbnail((image > 200).astype(np.uint8)).any()


def test_partial_correlation_is_that_of_the_residuals():
    a, b, c, d = np.random.default_rng(5).normal(size=(4, 6, 6, 6))
    b = b + a
    beside = np.stack([np.ones(216), c.ravel(), d.ravel()], axis=1)
    rest = [one.ravel() - beside @ np.linalg.lstsq(beside, one.ravel(), rcond=None)[0] for one in (a, b)]
    assert _partial_correlation(a, b, (c, d), (0, 0, 0)) == pytest.approx(np.corrcoef(rest)[0, 1], abs=1e-3)
    moved = np.full_like(a, 9.0)
    moved[:, 1:] = a[:, :-1]
    assert _partial_correlation(moved, a, None, (0, 1, 0)) == pytest.approx(1)


def test_check_names_both_cases_and_what_to_do(tmp_path):
    ids = [f"c{number:02d}" for number in range(12)]
    root = tiny.nnunet(tmp_path, ids)
    for number, name in enumerate(ids):
        tiny.nifti(root / f"imagesTr/{name}_0000.nii.gz", person(number).astype(np.float32))
        tiny.nifti(root / f"labelsTr/{name}.nii.gz", tiny.label(1, 2, shape=SHAPE))
    tiny.nifti(root / "imagesTr/c11_0000.nii.gz", CHANGES["noise"](person(4)).astype(np.float32)[:, ::-1])
    dataset, known = discover(root)
    (problem,) = check(dataset, known=known, workers=0)[0]
    assert (problem.case, problem.severity) == ("c11", "warning")
    assert problem.what.startswith(
        "nearly the same image as c04_0000.nii.gz of c04, of another patient: similarity 0.9"
    )
    assert "patients.csv (columns case, patient, such as c04,c04)" in problem.remedy
    tiny.text(
        root / "patients.csv", "case,patient\n" + "".join(f"{n},{'x' if n in ('c04', 'c11') else n}\n" for n in ids)
    )
    dataset, known = discover(root)
    assert not check(dataset, known=known, workers=0)[0]
