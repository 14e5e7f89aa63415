"""A CPU's rate: what is counted, by which clock, the faster dtype, and the cache that later plans read."""

import json

import pytest
import torch

from autoseg.nn import rate as rates
from autoseg.nn.memory.calibration import cache_path, device_name, load_terms, save_terms
from autoseg.nn.memory.model import DEFAULT_TERMS, DeviceTerms
from autoseg.nn.rate import RATE_FLOPS, RATE_TRIALS, CpuRate, known_rate, measure_rate, save_rate

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def made_up(**more) -> CpuRate:
    return CpuRate(**{"flops_2d": 2e11, "flops_3d": 3e11, "dtype": "float32", "device": device_name(CPU),
                      "torch": torch.__version__, "calibrated": False} | more)  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("dims", [2, 3])
def test_the_operations_of_the_trials_are_those_of_a_trace(dims):
    assert RATE_TRIALS[dims].trace("bfloat16", "cpu").flops == RATE_FLOPS[dims]


def clocked(monkeypatch, steps: list[float]) -> list[str]:
    """Let trials take these seconds; returns the dtypes they are run in."""
    seen = []

    def taken(self, device, dtype, clock):
        seen.append(dtype)
        yield from steps

    monkeypatch.setattr(rates.Trial, "steps", taken)
    monkeypatch.setattr(rates, "faster_dtype", lambda: "bfloat16")
    return seen


def test_the_fastest_step_counts_and_the_first_does_not(monkeypatch):
    """Two threads are taken to be 2^0.7 = 1.625 times as fast as one."""
    seen = clocked(monkeypatch, [0.1, 9.0, 0.5, 7.0, *[8.0] * 9])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    found = measure_rate()
    assert found.flops_2d == pytest.approx(1.6245 * RATE_FLOPS[2] / 0.5, rel=1e-3)
    assert found.flops_3d == pytest.approx(1.6245 * RATE_FLOPS[3] / 0.5, rel=1e-3)
    assert (found.calibrated, found.dtype, seen) == (False, "bfloat16", ["bfloat16"] * 2)


@pytest.mark.thorough
def test_measuring_leaves_threads_and_generator_alone():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    found = measure_rate()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert min(found.by_dims.values()) > 1e8
    assert found.device == device_name(CPU)


@pytest.mark.parametrize(("half", "expected"), [(0.5, "bfloat16"), (0.95, "float32"), (100.0, "float32")])
def test_half_precision_is_taken_by_a_margin(monkeypatch, half, expected):
    def convolutions(dtype):
        while True:
            yield 5.0  # a stall, or the first call
            yield half if dtype == "bfloat16" else 1.0

    monkeypatch.setattr(rates, "_convolutions", convolutions)
    assert rates.faster_dtype() == expected


# ---- the cache


def test_it_is_measured_once(monkeypatch):
    asked = []
    monkeypatch.setattr(rates, "measure_rate", lambda: asked.append(1) or made_up())
    assert known_rate() == known_rate() == made_up()
    assert len(asked) == 1


def test_what_calibrate_found_takes_its_place(monkeypatch):
    monkeypatch.setattr(rates, "measure_rate", made_up)
    assert not known_rate().calibrated
    save_rate(made_up(calibrated=True, flops_2d=1e11))
    assert known_rate() == made_up(calibrated=True, flops_2d=1e11)


@pytest.mark.parametrize("changed", [{"torch": "1.0"}, {"device": "another CPU"}])
def test_another_machine_is_measured_anew(monkeypatch, changed):
    save_rate(made_up(**changed))
    monkeypatch.setattr(rates, "measure_rate", lambda: made_up(dtype="bfloat16"))
    assert known_rate().dtype == "bfloat16"


def test_forbidden_instructions_and_threads_make_another_machine(monkeypatch):
    usual = device_name(CPU)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    forbidden = device_name(CPU)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "MADE UP")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert len({usual, forbidden, device_name(CPU)}) == 3
    assert "threads: 77, MADE UP, oneDNN up to AVX2" in device_name(CPU)


def test_rates_and_terms_stand_side_by_side():
    terms = DeviceTerms(1000, 200, 0.1, 5e9, device_name(CPU), torch.__version__, None, measured=True)
    save_rate(made_up())
    save_terms(terms)
    save_rate(made_up(flops_2d=1e9))
    assert load_terms("cpu") == terms
    assert known_rate().flops_2d == 1e9


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1, "rates": 3}', '{"version": 1, "devices": {}}'])
def test_a_damaged_cache_is_measured_over(monkeypatch, text):
    cache_path().parent.mkdir(parents=True)
    cache_path().write_text(text)
    monkeypatch.setattr(rates, "measure_rate", made_up)
    assert known_rate() == made_up()
    assert list(json.loads(cache_path().read_text())["rates"]) != []
    assert load_terms("cpu") == DEFAULT_TERMS


def test_a_cache_that_cannot_be_written_stops_nothing(monkeypatch, tmp_path):
    (tmp_path / "autoseg").write_text("a file where the folder should be")
    monkeypatch.setattr(rates, "measure_rate", made_up)
    assert known_rate() == made_up()
