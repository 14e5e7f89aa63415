"""A validation without its network: everything else is done, and timed."""

import numpy as np
import torch

from autoseg.dataloading.store import CaseStore
from autoseg.datasets.dataset import Case
from autoseg.inference import rehearsal as module
from autoseg.inference.rehearsal import seconds_beside_network
from autoseg.workspace import Workspace
from bright import picture, plan_of
from files import nifti
from stored_cases import commit


def test_one_case_is_segmented_as_background_and_stands_for_all(tmp_path, monkeypatch):
    """Of volumes 8, 4 and 1 the middle one is measured, and its time counts (8 + 4 + 1) / 4 times."""
    plan, workspace = plan_of(), Workspace(tmp_path / "w")
    store = CaseStore(workspace.preprocessed(plan.configurations["3d_fullres"].data))
    for case, z in (("a", 8), ("b", 4), ("c", 1)):
        commit(store, case, np.zeros((1, z, 5, 6), np.float32), np.zeros((z, 5, 6), np.int16), 1)
    path = nifti(tmp_path / "b.nii", picture((8, 9, 10)), np.eye(4))
    cases = [Case(case, case, (str(path),), str(path)) for case in "abc"]
    written, clock = [], iter((100.0, 102.0))
    monkeypatch.setattr(module, "write_labels", lambda path, array, like: written.append((path.name, array)))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    assert seconds_beside_network(workspace, plan, "3d_fullres", cases, torch.device("cpu")) == 2.0 * 13 / 4
    ((name, array),) = written
    assert (name, array.shape, array.any()) == ("case.nii", (8, 9, 10), False)
    assert seconds_beside_network(workspace, plan, "3d_fullres", [], torch.device("cpu")) == 0.0
