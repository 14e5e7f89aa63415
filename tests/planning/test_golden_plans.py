"""Two fingerprints that differ in their components alone, and the difference that makes to their plans.

The files in golden/ hold the two, and their plans. After a rule was changed on purpose, rewrite them with
`python tests/test_golden_plans.py` and read the difference.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from autoseg.planning.fingerprint import Fingerprint
from autoseg.planning.plan import Plan
from autoseg.planning.planner import describe
from autoseg.records import load, save
from plans import decided, golden_pair, plan

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_golden_plans(name):
    found, labels = golden_pair()[name]
    assert load(Fingerprint, GOLDEN / f"{name}.fingerprint.json") == found
    assert load(Plan, GOLDEN / f"{name}.plan.json") == plan(found, labels, vram_gb=8)


def test_fingerprints_that_differ_in_sparsity_alone_give_different_plans():
    dense, sparse = (plan(*golden_pair()[name], vram_gb=8) for name in ("dense", "sparse"))
    # a lesion of 0.9 mm is lost in slices of 2 mm in the two cases stored finer: 4 of 8
    assert dense.configurations["3d_fullres"].spacing == (2, 1, 1)
    assert sparse.configurations["3d_fullres"].spacing[0] == pytest.approx(1, abs=0.01)
    assert "lesion 4 of 8" in decided(sparse, "1.2")[1]
    # the dense organ is met by every patch; the sparse one about as often as the patch fills the image
    assert dense.training.foreground_fraction == 0.33
    chance = math.prod(sparse.configurations["3d_fullres"].patch_size) / (240 * 256 * 256)
    assert sparse.training.foreground_fraction == pytest.approx((2 / 3 - chance) / (1 - chance), abs=0.03)
    assert sparse.training.foreground_fraction > 0.5
    assert "wanted 67%" in decided(sparse, "5.4")[1]
    # the lesion is in 4 of 10 cases
    assert (dense.training.case_sampling, sparse.training.case_sampling) == ("uniform", "presence")
    assert "lesion 0.4" in decided(sparse, "5.5")[1]
    assert dense.training.class_weights is None
    assert sparse.training.class_weights is not None
    assert np.mean(sparse.training.class_weights) == pytest.approx(1, abs=1e-3)
    assert "root of inverse frequency" in decided(sparse, "5.3")[1]
    assert not dense.configurations["3d_fullres"].batch_dice
    assert sparse.configurations["3d_fullres"].batch_dice
    assert "lesion" in decided(sparse, "3.6 batch Dice (3d_fullres)")[1]
    # and every reason stands in what is printed
    for made in (dense, sparse):
        assert re.sub(r"\s+", "", "".join(decided(made, "5.5"))) in re.sub(r"\s+", "", describe(made))


if __name__ == "__main__":
    for golden_name, (golden_found, golden_labels) in golden_pair().items():
        save(GOLDEN / f"{golden_name}.fingerprint.json", golden_found)
        save(GOLDEN / f"{golden_name}.plan.json", plan(golden_found, golden_labels, vram_gb=8))
