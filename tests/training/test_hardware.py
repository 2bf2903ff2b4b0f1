"""Every `auto` is resolved once, before anything is loaded: a config without it, and the reasons."""

from dataclasses import asdict

import pytest
import torch
from conftest import make_config

from fastcifar.training import hardware
from fastcifar.training.hardware import resolve


def left_open(plain, path=""):
    """Paths of the settings that are `auto`."""
    for name, value in plain.items():
        if isinstance(value, dict):
            yield from left_open(value, f"{path}{name}.")
        elif value == "auto":
            yield path + name


@pytest.fixture
def card(monkeypatch):
    """A card of a compute capability, for what asks torch about it."""

    def give(capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return give


def test_nothing_is_open_on_a_cpu(monkeypatch):
    monkeypatch.setattr(hardware, "cpu_multiplies_bf16", lambda: False)
    config, found = resolve(make_config(device="cpu"))
    assert list(left_open(asdict(config))) == ["data.source"]
    machine = config.machine
    assert (machine.precision, machine.compile, machine.executor) == ("fp32", "off", "torch")
    assert config.model.scale == "small"
    assert (found.device, found.dtype, found.on_card) == (torch.device("cpu"), torch.float32, False)
    assert set(found.reasons) == {"precision", "compile", "augment", "scale"}


@pytest.mark.parametrize(("capability", "precision"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16")])
def test_a_card_computes_in_16_bits_and_neither_compiles_nor_takes_dali(card, capability, precision):
    """A run goes on where it can: the device stays open."""
    card(capability)
    config, found = resolve(make_config(), local_rank=1)
    assert list(left_open(asdict(config))) == ["data.source", "machine.device"]
    machine = config.machine
    assert (machine.precision, machine.compile, machine.executor) == (precision, "off", "torch")
    assert config.model.scale == "full" and found.device == torch.device("cuda", 1) and found.on_card
    assert found.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert "slower" in found.reasons["compile"] and "slower" in found.reasons["augment"]


def test_what_is_given_is_kept_and_needs_no_reason(monkeypatch):
    monkeypatch.setattr(hardware, "cpu_multiplies_bf16", lambda: True)
    given = make_config(device="cpu", precision="fp32", compile="default", augment="dali", scale="wide")
    config, found = resolve(given)
    assert config == given and found.reasons == {}
    config, found = resolve(make_config(device="cpu"))
    assert config.machine.precision == "bf16" and found.reasons["precision"] == "this CPU multiplies bf16"
    assert resolve(config)[0] == config  # a resumed run keeps what was resolved


def test_fp16_is_for_cards():
    with pytest.raises(ValueError, match="precision fp16 needs a CUDA card, this run is on cpu"):
        resolve(make_config(device="cpu", precision="fp16"))
