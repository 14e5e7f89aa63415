"""The order in which regions are written: which loses labels, and which order works."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoseg.datasets.dataset import discover, parse_options
from autoseg.errors import DataError, UsageError
from autoseg.imaging.labels import LabelSet
from autoseg.imaging.regions import never_written, order_that_works, refuse_lost_labels

NESTED = {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}


@pytest.mark.parametrize(
    ("regions", "written"),
    [
        (NESTED, (1, 2, 3)),
        ({"whole": (1, 2), "core": (2,)}, (1, 2)),
        ({"a": (1,), "b": (2,)}, (1, 2)),
        ({"b": (2,), "a": (1,)}, (2, 1)),
        ({"breast": (1, 2), "gland": (3,)}, (1, 3)),  # 2 becomes 1, which is in the same region
        ({"breast": (1, 2), "gland": (3,)}, (2, 3)),
        ({}, ()),
    ],
)
def test_orders_that_keep_every_region(regions, written):
    refuse_lost_labels(regions, written)


@pytest.mark.parametrize(
    ("regions", "written", "lost"),
    [
        ({"core": (2,), "whole": (1, 2)}, (2, 1), "label 2"),  # whole is written over core
        ({"whole": (1, 2), "core": (2,)}, (2, 1), "label 1"),  # the two values are exchanged
        ({"enhancing": (3,), "core": (2, 3), "whole": (1, 2, 3)}, (3, 2, 1), "label 2"),
        ({"whole": (1, 2), "core": (2,)}, (1, 1), "label 2"),
        ({"a": (1, 2), "b": (2, 3)}, (1, 3), "label 2"),  # they overlap, and nothing stands for both
        ({"whole": (1, 2)}, (0,), "label 1"),
    ],
)
def test_orders_that_lose_a_label(regions, written, lost):
    with pytest.raises(UsageError, match="cannot be written") as caught:
        refuse_lost_labels(regions, written)
    assert lost in caught.value.what


def test_the_order_that_works_is_named():
    assert order_that_works({"core": (2,), "whole": (1, 2)}) == (
        'write the outermost first: "labels": {"whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]'
    )
    assert "label 2 is in a and b" in order_that_works({"a": (1, 2), "b": (2, 3)})
    assert "no label of its own" in order_that_works({"a": (1, 2), "b": (1,), "c": (2,)})


unions = st.dictionaries(
    st.sampled_from("abcd"), st.sets(st.integers(1, 5), min_size=1).map(lambda s: tuple(sorted(s))), min_size=1
)


@given(unions, st.data())
def test_what_is_accepted_brings_every_region_back(regions, data):
    """Written from regions that are found exactly, a map has the regions it was written from; and only then."""
    values = sorted({value for union in regions.values() for value in union})
    written = tuple(data.draw(st.sampled_from(values)) for _ in regions)
    labels = LabelSet({f"label_{v}": v for v in values}, regions, written)
    truth = np.array(values)
    probabilities = np.array([np.isin(truth, union) for union in regions.values()], dtype=float)
    after = labels.to_file_values(labels.decide(probabilities))
    kept = all((np.isin(after, union) == np.isin(truth, union)).all() for union in regions.values())
    if kept:
        refuse_lost_labels(regions, written)
        assert never_written(regions, written) == {v: w for v, w in zip(values, after, strict=True) if v != w}
    else:
        with pytest.raises(UsageError):
            refuse_lost_labels(regions, written)


@given(unions)
def test_the_order_that_is_named_is_accepted(regions):
    told = order_that_works(regions)
    if not told.startswith("write the outermost first"):
        return
    plain = json.loads("{" + told.removeprefix("write the outermost first: ") + "}")
    refuse_lost_labels(plain["labels"], plain["regions_class_order"])


def dataset_json(root, **more):
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(exist_ok=True)
        (root / name / f"a{'_0000' * (name == 'imagesTr')}.nii.gz").touch()
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MR"}, "numTraining": 1, **more}))
    return root


def test_a_dataset_json_in_the_wrong_order_is_refused_with_the_right_one(tmp_path):
    wrong = {"background": 0, "core": [2], "whole": [1, 2]}
    with pytest.raises(DataError, match=r"dataset\.json.*whole writes 1 last") as caught:
        discover(dataset_json(tmp_path, labels=wrong, regions_class_order=[2, 1]))
    assert '"regions_class_order": [1, 2]' in caught.value.remedy
    with pytest.raises(DataError, match="2 regions but 0 values") as caught:
        discover(dataset_json(tmp_path, labels=wrong))
    assert '"regions_class_order": [1, 2]' in caught.value.remedy
    right = {"background": 0, "whole": [1, 2], "core": [2]}
    assert discover(dataset_json(tmp_path, labels=right, regions_class_order=[1, 2]))[0].labels.region_values == (1, 2)


def test_regions_by_option_that_overlap_are_refused(tmp_path):
    root = dataset_json(tmp_path, labels={"background": 0, "a": 1, "b": 2, "c": 3})
    with pytest.raises(UsageError, match="cannot be written"):
        discover(root, parse_options(regions="a=1+2,b=2+3"))
    assert discover(root, parse_options(regions="whole=1+2+3,core=2"))[0].labels.region_values == (1, 2)
