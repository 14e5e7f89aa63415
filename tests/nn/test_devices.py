"""The device at hand: chosen by name, refused in words, and the GPU of a rank alone is touched."""

import pytest
import torch

from autoseg.errors import UsageError
from autoseg.nn.devices import choose_device


@pytest.mark.parametrize(
    ("asked", "local_rank", "chosen"),
    [
        ("auto", None, "cuda:0"),
        ("cuda", None, "cuda:0"),
        ("cuda:1", None, "cuda:1"),
        ("auto", "1", "cuda:1"),
        ("cuda", "1", "cuda:1"),
        ("auto", "5", "cuda:0"),  # there is none of its own, of which the ranks tell when they meet
    ],
)
def test_a_process_touches_its_own_gpu_alone(monkeypatch, asked, local_rank, chosen):
    """Each GPU that is touched loses a few hundred megabytes to the process, of which plans know nothing."""
    touched = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: touched.append(str(device)))
    monkeypatch.setattr(torch, "zeros", lambda *_, device: touched.append(str(device)))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert choose_device(asked) == torch.device(chosen)
    assert touched == [chosen, chosen]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ("cuda", "--device cuda cannot be used here"),
        ("cuda:3", "--device cuda:3 cannot be used here"),
        ("cdua", "--device 'cdua': expected one of cuda, cpu, mps"),
    ],
)
def test_a_device_that_is_not_there_is_refused(asked, what):
    with pytest.raises(UsageError, match=what):
        choose_device(asked)
