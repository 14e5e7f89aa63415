"""What is written beside a segmentation, from an image file to the files of viewers and tables."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from autoseg.datasets.dataset import Case, load_case
from autoseg.errors import UsageError
from autoseg.inference.ensemble import Ensemble, split
from autoseg.inference.extras import CaseReport, ProbabilityOutput
from autoseg.inference.member import EnsembleMember, decide
from autoseg.inference.statistics import CaseStatistics, ExpectedDice, FolderStatistics
from autoseg.records import load
from bright import THRESHOLD, Lopsided, model_of, picture, plan_of
from files import affine_along, nifti
from rows import feed

ONE = (1.0, 1.0, 1.0)


def loaded_case(folder, axis_order=(0, 1, 2), name="case"):
    image = nifti(folder / f"{name}.nii.gz", picture((9, 11, 13)), affine_along("RSA", ONE))
    return load_case(Case(name, name, (str(image),), None), None, axis_order=axis_order)


def run(extras, ensemble: Ensemble, loaded, path):
    """Segment one case as `predict_cases` does: the spacing is that of the network, nothing is resampled."""
    members = [EnsembleMember(model, ensemble.options) for model in ensemble.models]
    consumers = [c for c in [extra.begin(loaded, members, path) for extra in extras] if c is not None]
    feed(consumers, [member.logits(member.prepare(loaded).image) for member in members])
    labels = decide(members, loaded)
    for extra in extras:
        extra.finish(labels)
    return labels


@pytest.mark.parametrize("axis_order", [(0, 1, 2), (2, 0, 1)])
def test_probabilities_lie_on_the_image(tmp_path, axis_order):
    loaded = loaded_case(tmp_path, axis_order)
    ensemble = split([model_of(ONE, plan=plan_of(axis_order=axis_order))], by="folds")
    output = ProbabilityOutput(tmp_path / "out", ensemble)
    run([output], ensemble, loaded, tmp_path / "out" / "case.nii.gz")
    image = nib.load(tmp_path / "case.nii.gz")
    found = nib.load(tmp_path / "out" / "probabilities" / "case" / "1_organ.nii")
    np.testing.assert_array_equal(found.affine, image.affine)
    values = np.asarray(image.dataobj)
    expected = 1 / (1 + np.exp((THRESHOLD - values) / 20.0))
    beyond = np.ones(values.shape, bool)
    filled = np.nonzero(values)
    beyond[tuple(slice(axis.min(), axis.max() + 1) for axis in filled)] = False
    np.testing.assert_allclose(np.asarray(found.dataobj), np.where(beyond, 0, expected), atol=1e-4)


def test_a_report_of_a_case(tmp_path):
    loaded = loaded_case(tmp_path)
    model = replace(model_of(ONE), folds=(0, 1), networks=(Lopsided(0.1), Lopsided(0.05)))
    ensemble = split([model], by="folds")
    certain = ExpectedDice(0.9, 0.8, 0.95, 0.9)
    seen = []

    def expected(agreement):
        seen.append(agreement)
        return {"organ": certain}, certain

    out = tmp_path / "out"
    report = CaseReport(out, ensemble, uncertainty=True, expected=expected, patients={"case": ("P", 3)})
    labels = run([report], ensemble, loaded, out / "case.nii.gz")
    (out / "case.nii.gz").touch()
    case = load(CaseStatistics, out / "statistics" / "case.json")
    (organ,) = case.labels
    assert (case.patient, case.place_in_series, case.unit) == ("P", 3, "ml")
    assert organ.voxels == np.count_nonzero(labels)
    assert organ.size == pytest.approx(organ.voxels / 1000)
    values = np.asarray(nib.load(tmp_path / "case.nii.gz").dataobj)
    inside = loaded.to_stored(labels).T > 0
    assert organ.intensities["MR"].mean == pytest.approx(values[inside].mean())
    assert (organ.expected_dice, case.expected_dice) == (certain, certain)
    assert report.of_cases == {"case": certain}
    assert 0 < organ.disagreement < 1
    assert 0 < organ.entropy <= 1
    assert 0 < seen[0].pairwise_dice["organ"] < 1
    maps = nib.load(out / "uncertainty" / "case" / "entropy.nii")
    assert np.asarray(maps.dataobj)[inside].mean() == pytest.approx(organ.entropy, abs=1e-4)
    report.collect()
    assert load(FolderStatistics, out / "statistics.json").cases == (case,)


def test_statistics_alone_need_no_logits(tmp_path):
    ensemble = split([model_of(ONE)], by="models")
    report = CaseReport(tmp_path / "out", ensemble)
    assert report.begin(loaded_case(tmp_path), [], tmp_path / "out" / "case.nii.gz") is None
    assert report.name == "statistics"


def test_a_case_that_fails_leaves_nothing_behind(tmp_path):
    ensemble = split([model_of(ONE)], by="folds")
    members = [EnsembleMember(model) for model in ensemble.models]
    extras = [ProbabilityOutput(tmp_path / "out", ensemble), CaseReport(tmp_path / "out", ensemble, uncertainty=True)]
    for name in ("failing", "next"):
        loaded = loaded_case(tmp_path, name=name)
        for extra in extras:
            extra.begin(loaded, members, tmp_path / "out" / f"{name}.nii.gz")
    for extra in extras:
        extra.close()
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_folder_of_the_user_is_not_replaced(tmp_path):
    ensemble = split([model_of(ONE)], by="folds")
    members = [EnsembleMember(model) for model in ensemble.models]
    theirs = tmp_path / "out" / "uncertainty" / "case" / "notes.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    report = CaseReport(tmp_path / "out", ensemble, uncertainty=True)
    with pytest.raises(UsageError, match="it is not replaced"):
        report.begin(loaded_case(tmp_path), members, tmp_path / "out" / "case.nii.gz")
    assert theirs.read_text() == "mine"
