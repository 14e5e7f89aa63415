"""Calibration: the fit by hand, the cache's round trip and damage, real steps of tiny trials on this CPU."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autoseg.nn.memory import calibration
from autoseg.nn.memory.calibration import (
    TRIALS,
    Observation,
    Trial,
    cache_path,
    calibrate,
    device_name,
    fit,
    load_terms,
    observe,
    resident_bytes,
    save_terms,
    terms_of,
)
from autoseg.nn.memory.model import DEFAULT_TERMS, DeviceTerms, StepCost

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
CUDA = torch.device("cuda")
TINY = Trial("unet", (4, 8), 2, (8, 8), 2)
MEASURED = DeviceTerms(1000, 200, 0.1, 5e9, device_name(CPU), torch.__version__, None, measured=True)


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


# ---- the fit


def test_points_on_a_line_give_the_line():
    live = [100, 200, 400]
    workspace, share = fit(live, [50 + 1.2 * x for x in live])
    assert workspace == pytest.approx(50, abs=1)
    assert share == pytest.approx(0.2, abs=1e-9)


def test_underestimates_weigh_ten_times_as_much():
    """Without tensors 100 and 200 bytes were held. The minimum of ((w - 100) / 100)^2 + 10 ((w - 200) / 200)^2 is where
    (w - 100) + 2.5 (w - 200) = 0, at 600 / 3.5 = 171.4."""
    workspace, share = fit([0, 0], [100, 200])
    assert workspace == 172
    assert share == 0


def test_terms_are_never_negative():
    assert fit([100, 200], [90, 170]) == (0, 0.0)
    # the line through both would have a share of -0.1: 10 (w - 50) / 150^2 + (w - 40) / 240^2 = 0 at w = 49.6
    assert fit([100, 200], [150, 240]) == (50, 0.0)
    workspace, share = fit([100, 200], [110, 250])  # or a workspace of -30
    assert workspace == 0
    assert 0.1 < share < 0.25


def test_terms_of_observations():
    """Held: 30 + 1.5 times the tensors; the highest context; the median of 10, 20 and 60 operations a second."""
    seen = [Observation(100, 7, 180, 100, 10.0), Observation(200, 9, 330, 400, 20.0), Observation(300, 8, 480, 60, 1.0)]
    terms = terms_of(seen, CPU)
    assert (terms.context_bytes, terms.flops_per_second, terms.measured) == (9, 20.0, True)
    assert terms.workspace_bytes == pytest.approx(30, abs=1)
    assert terms.fragmentation == pytest.approx(0.5)
    assert (terms.device, terms.torch, terms.cudnn) == (device_name(CPU), torch.__version__, None)


# ---- the cache


def test_nothing_measured_nothing_known():
    assert load_terms("cpu") == load_terms(None) == DEFAULT_TERMS


def test_saved_terms_come_back():
    path = save_terms(MEASURED)
    assert path == cache_path()
    assert load_terms("cpu") == MEASURED
    assert [file.name for file in path.parent.iterdir()] == ["calibration.json"]  # no half-written file beside it


def test_a_second_device_stands_beside_the_first():
    save_terms(MEASURED)
    save_terms(replace(MEASURED, device="a GPU", cudnn="91002"))
    assert load_terms("cpu") == MEASURED
    assert len(json.loads(cache_path().read_text())["devices"]) == 2


def test_a_new_measurement_replaces_the_old():
    save_terms(MEASURED)
    save_terms(replace(MEASURED, context_bytes=1))
    assert load_terms("cpu").context_bytes == 1
    assert len(json.loads(cache_path().read_text())["devices"]) == 1


@pytest.mark.parametrize("changed", [{"torch": "1.0"}, {"device": "another CPU"}, {"cudnn": "91002"}])
def test_other_versions_and_devices_do_not_count(changed):
    save_terms(replace(MEASURED, **changed))
    assert load_terms("cpu") == DEFAULT_TERMS


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 0, "devices": {}}', '{"version": 1}', "null"])
def test_a_damaged_cache_is_none(text):
    cache_path().parent.mkdir(parents=True)
    cache_path().write_text(text)
    assert load_terms("cpu") == DEFAULT_TERMS
    save_terms(MEASURED)
    assert load_terms("cpu") == MEASURED


def test_an_entry_with_other_fields_is_none():
    save_terms(MEASURED)
    plain = json.loads(cache_path().read_text())
    next(iter(plain["devices"].values()))["colour"] = "red"
    cache_path().write_text(json.dumps(plain))
    assert load_terms("cpu") == DEFAULT_TERMS


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_here_was_never_measured():
    assert load_terms("gpu") == load_terms("cuda:1") == DEFAULT_TERMS


# ---- measuring


def test_resident_memory_rises_with_what_is_written():
    before, peak_before = resident_bytes()
    held = torch.ones(16 * 2**20)  # 64 MiB
    now, peak = resident_bytes()
    assert now - before > 60 * 2**20
    assert peak >= max(peak_before, now)
    del held


@pytest.mark.thorough
def test_calibrating_this_cpu(monkeypatch, said):
    monkeypatch.setitem(TRIALS, "cpu", (replace(TINY, patch_size=(256, 256)),))
    terms = calibrate("cpu")
    assert terms.measured
    assert 50 * 2**20 < terms.context_bytes < 4 * 2**30  # python with torch
    assert terms.flops_per_second is not None
    assert terms.flops_per_second > 0
    assert len(said) == 2
    assert "unet 256x256, batch 2" in said[0]
    assert said[1] == terms.describe()


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match="only cuda and cpu can be calibrated, not meta"):
        calibrate("meta")


@pytest.mark.parametrize(("elsewhere", "context"), [(0, 500), (3 * 2**30, DEFAULT_TERMS.context_bytes)])
def test_what_is_held_on_cuda_by_hand(monkeypatch, elsewhere, context):
    """Of 10 GiB, 500 bytes are the context's, 4000 reserved (6000 at the peak), and others may hold 3 GiB."""
    total = 10 * 2**30
    for name, value in {
        "empty_cache": None,
        "reset_peak_memory_stats": None,
        "max_memory_reserved": 6000,
        "memory_reserved": 4000,
        "mem_get_info": (total - 4000 - 500 - elsewhere, total),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(Trial, "run", lambda *_: 0.25)
    seen = observe(TINY, StepCost(5000, 1, 100), CUDA, "bfloat16")
    assert seen == Observation(live=5000, context=context, used=6000, flops=100, seconds=0.25)


def test_trials_too_large_for_a_gpu_are_left_out(monkeypatch):
    """Free are 5 GiB, of which a trial may take 3; the trials are said to take 1 to 5 GiB."""
    sizes = iter(range(1, 6))
    seen = []

    def observed(trial: Trial, cost: StepCost, *_) -> Observation:
        seen.append(cost.peak)
        return Observation(cost.peak, 1, cost.peak, 1, 1.0)

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (5 * 2**30, 8 * 2**30))
    monkeypatch.setattr(Trial, "trace", lambda *_: StepCost(next(sizes) * 2**30, 1, 1))
    monkeypatch.setattr(calibration, "trained_dtype", lambda _: "bfloat16")
    monkeypatch.setattr(calibration, "device_name", lambda _: "a GPU")
    monkeypatch.setattr(calibration, "observe", observed)
    assert calibrate("cuda").device == "a GPU"
    assert seen == [2**30, 2 * 2**30, 3 * 2**30]


@pytest.mark.parametrize("trial", [*TRIALS["cuda"], *TRIALS["cpu"]])
def test_trials_halve_their_patches_without_rest(trial):
    divisors = [1] * len(trial.patch_size)
    for stride in trial.strides:
        divisors = [d * s for d, s in zip(divisors, stride, strict=True)]
    assert all(edge % d == 0 for edge, d in zip(trial.patch_size, divisors, strict=True))


def test_thick_slices_stay_whole_at_first():
    trial = Trial("unet", (4, 4, 4, 4), 2, (4, 16, 16), 1, flat=2)
    assert trial.strides == [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)]
    kernels = [m.kernel_size for m in trial.build().encoder.modules() if isinstance(m, torch.nn.Conv3d)]
    assert kernels == [(1, 3, 3)] * 4 + [(3, 3, 3)] * 4


@pytest.mark.thorough
def test_the_gpu_benchmark_needs_torch_and_numpy_alone():
    absent = ("filelock", "SimpleITK", "nibabel", "batchgenerators", "psutil", "scipy", "skimage")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent})); sys.path.insert(0, 'benchmarks'); import gpu_memory"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
