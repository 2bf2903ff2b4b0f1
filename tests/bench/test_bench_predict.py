"""Predictions follow from the operators: arithmetic as the FLOP counter says, bytes as tensors have them."""

import json
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench import operators, predict
from fastcifar.config.recipes import RECIPES
from fastcifar.models import fused
from fastcifar.models.networks import make_model, train_flop

PEER = """
import torch
with open(__file__) as f:
    code = f.read()

@torch.compile
def unused(x):
    return x

class CifarNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 10, 3).half()

    def forward(self, x):
        return self.conv(x).mean((2, 3))
"""


@pytest.fixture(scope="module")
def program():
    return predict.fastcifar_program(RECIPES["speedrun94"], compiled=False, name="fastcifar")


def test_the_arithmetic_is_that_of_the_flop_counter(program):
    model = make_model(RECIPES["speedrun94"].model, 10, 0)
    assert program.steps == {22: 200, 32: 550}
    for size, ops in program.ops.items():
        flop = sum(op.flop for op in ops if op.phase != "update")
        assert flop == pytest.approx(500 * train_flop(model, size), rel=1e-6)


def test_bytes_are_those_of_inputs_and_outputs():
    model = nn.Linear(7, 10, bias=False).to("meta")
    ops = operators.trace(
        model, lambda x: model(x.float().mean((2, 3))[:, :1].expand(-1, 7)), 4, 8, 10, torch.half, None
    )
    (product,) = [op for op in ops if op.flop]
    assert product.flop == 2 * 4 * 7 * 10 and product.moved == 4 * (4 * 7 + 7 * 10 + 4 * 10)


def test_muon_takes_few_operations(program):
    update = [op for op in program.ops[32] if op.phase == "update"]
    assert len(update) < 120  # with the SGD of the rest


def test_a_faster_card_and_a_compiler_are_predicted_faster(program):
    a100, h100 = (predict.predict(program, predict.CARDS[card], 0.5).total_s for card in ("a100", "h100"))
    compiled = predict.Program("x", program.steps, program.ops, program.test_ops, compiled=True)
    assert h100 < a100 and predict.predict(compiled, predict.CARDS["a100"], 0.5).total_s < a100


def test_fused_kernels_move_less_and_compute_as_much(program):
    with_kernels = predict.fastcifar_program(RECIPES["speedrun94"], compiled=False, name="fused", fused=True)
    for size, ops in program.ops.items():
        assert sum(op.flop for op in with_kernels.ops[size]) == sum(op.flop for op in ops)
        names = [op.name for op in with_kernels.ops[size]]
        assert [names.count(name) for name in ("statistics", "normalize", "gradient_sums", "input_gradient")] == [7] * 4
        assert not {"native_batch_norm", "max_pool2d_with_indices"} & set(names)
    plain, less = (predict.predict(p, predict.CARDS["h100"], 0.5) for p in (program, with_kernels))
    assert less.moved_mb < 0.7 * plain.moved_mb and less.total_s < plain.total_s


def test_a_kernel_counts_each_of_its_tensors_once():
    """Pool of 2 images of 8 channels, 5x5 to 2x2 pixels, in fp16: x, z, code (1 byte), two parts of 8 channels."""
    norm, x = nn.BatchNorm2d(8, device="meta"), torch.empty(2, 8, 5, 5, device="meta", dtype=torch.half)
    fused.use_kernels(norm)
    ops = operators.trace(
        norm, lambda _: fused.norm_activation(norm, x, torch.relu, pool=True).mean((2, 3)), 2, 8, 8, torch.half, None
    )
    assert "statistics" not in {op.name for op in ops}  # in evaluation
    norm.train()
    with mock.patch.object(norm, "train"):
        ops = operators.trace(
            norm, lambda _: fused.norm_activation(norm, x, F.relu, pool=True).mean((2, 3)), 2, 8, 8, torch.half, None
        )
    (statistics,) = [op for op in ops if op.name == "statistics"]
    assert statistics.moved == 2 * 8 * (25 * 2 + 4 * 2 + 4) + 2 * 8 * 4


def test_a_peer_is_fitted_and_every_line_says_predicted(tmp_path, capsys):
    (tmp_path / "peer.py").write_text(PEER)
    compile_before = torch.compile
    assert predict.main(["--peers", f"airbench94={tmp_path / 'peer.py'}", "--out", str(tmp_path / "out")]) == 0
    assert torch.compile is compile_before
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| a100", "| h100"))]
    assert len(lines) == 8 and all(line.count("predicted") == 2 for line in lines)
    rows = json.loads((tmp_path / "out/table.json").read_text())["rows"]
    assert [row["program"] for row in rows if row["published_s"]] == ["airbench94"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--cards", "tpu"], "card 'tpu' is unknown"),
        (["--peers", "other=x.py"], "peer 'other' is unknown"),
        (["--peers", "hiverge=/no/such.py"], "/no/such.py"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(arguments, told, tmp_path, capsys):
    assert predict.main([*arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
