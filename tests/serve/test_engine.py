"""How far a segmentation is, and what labels are called."""

from dataclasses import replace
from pathlib import Path

import pytest

from autoseg.datasets.dataset import Case
from autoseg.errors import StateError
from autoseg.imaging.labels import LabelSet
from autoseg.planning.prompted import with_prompts
from autoseg.serve.engine import Engine
from autoseg.serve.work import Cancelled
from exported import plan_for_tests
from files import affine_along, nifti
from plans import plan_of
from served import SHAPE, engine_of, model_of
from tiny import image


def loaded_for(engine: Engine, folder: Path):
    path = nifti(folder / "a.nii.gz", image(1, SHAPE), affine_along("LPS", (1.0, 1.0, 2.0)))
    return engine.load(Case("a", "a", (str(path),), None))[0]


def engines() -> dict[str, Engine]:
    plan = plan_for_tests()
    full, cascade = model_of(plan, "3d_fullres"), model_of(plan, "3d_cascade")
    cascade = replace(cascade, previous=model_of(plan, "3d_lowres"))
    return {"one model": Engine([full]), "two models": Engine([full, cascade]), "a cascade": Engine([cascade])}


@pytest.mark.parametrize("kind", ["one model", "two models", "a cascade"])
def test_progress_grows_with_the_tiles_to_one(tmp_path, kind):
    engine, seen = engines()[kind], []
    engine.segment(loaded_for(engine, tmp_path), seen.append)
    assert len(seen) > 5
    assert seen == sorted(seen)
    assert seen[0] < 0.3
    assert seen[-1] == 1.0
    again: list[float] = []
    engine.segment(loaded_for(engine, tmp_path), again.append)
    assert again == seen


def test_a_segmentation_ends_where_it_is_given_up_and_the_next_one_is_right(tmp_path):
    engine = engine_of(prompts=False)
    loaded = loaded_for(engine, tmp_path)
    expected = engine.segment(loaded, lambda share: None)

    def give_up(share: float) -> None:
        if share > 0.4:
            raise Cancelled

    with pytest.raises(Cancelled):
        engine.segment(loaded, give_up)
    assert (engine.segment(loaded, lambda share: None) == expected).all()


def test_labels_are_found_by_name_and_background_may_be_one_of_them():
    assert [engine_of().index_of(name) for name in ("background", "label1", "label2", "liver")] == [0, 1, 2, None]
    own = engine_of(plan_of(LabelSet({"background": 3, "liver": 5})), "3d_fullres", prompts=False)
    assert [own.index_of(name) for name in ("background", "liver")] == [1, 2]


def test_a_model_with_prompts_of_other_labels_is_refused():
    other, name = with_prompts(plan_of(LabelSet({"liver": 1})), "3d_fullres")
    with pytest.raises(StateError, match="labels"):
        Engine([model_of(plan_for_tests(), "3d_fullres")], prompted=model_of(other, name))
