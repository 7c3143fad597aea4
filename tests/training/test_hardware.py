import pytest
import torch

from lowrank.errors import UserError
from lowrank.training import hardware
from lowrank.training.hardware import autocast, pick_device, pick_precision


def test_unavailable_device_raises_user_error(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    for name in ("cuda", "mps"):
        with pytest.raises(UserError, match=f"PyTorch finds no '{name}'"):
            pick_device(name)


def test_device_of_another_kind_raises_user_error(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(hardware, "claimed_gpu", lambda: 1)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="PyTorch finds no 'mps'"):
        pick_device("mps")


def test_precision(monkeypatch):
    cpu = torch.device("cpu")
    assert pick_precision("float32", cpu) is torch.float32
    assert pick_precision("bfloat16", cpu) is torch.bfloat16
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda n=native: n)
        assert pick_precision("auto", cpu) is expected


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_products_have_the_precision(precision):
    matrix = torch.ones(2, 2)
    with autocast(torch.device("cpu"), precision):
        assert (matrix @ matrix).dtype is precision
