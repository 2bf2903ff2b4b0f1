"""Groups, rows written into them, and optimizers against plain formulas."""

from typing import Any

import pytest
import torch
from conftest import make_config
from torch import nn
from torch.optim import SGD

from fastcifar.config.config import Model, Optimizer
from fastcifar.models.networks import make_model
from fastcifar.optim.capturable_sgd import CapturableSGD
from fastcifar.optim.optimizers import (
    Muon,
    make_optimizers,
    orthogonalize,
    parameter_groups,
    set_row,
)

KINDS = [(network, norm) for network in ("resnet9", "resnet18") for norm in ("bn", "gn-ws")]


def small_network(network: Any = "resnet9", norm: Any = "bn") -> nn.Module:
    return make_model(Model(network=network, scale="small", norm=norm), 10, seed=0)


def with_gradients(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random gradients in the layout of their weights, as autograd makes them."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))
    return model


# Groups


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize(("network", "norm"), KINDS)
def test_every_trainable_parameter_is_held_once(network, norm, optimizer):
    model = small_network(network, norm)
    groups = [g for o in make_optimizers(model, make_config(optimizer=optimizer)) for g in o.param_groups]
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("network", "norm"), KINDS)
def test_decay_is_for_filters_and_head_alone(network, norm):
    model = small_network(network, norm)
    decayed = {id(p) for g in parameter_groups(model, Optimizer(batch_size=500, weight_decay=1e-3)) if g["weight_decay"]
               for p in g["params"]}  # fmt: skip
    for name, p in model.named_parameters():
        assert (id(p) in decayed) == (p.requires_grad and p.ndim > 1), name
    owners = {id(p): m for m in model.modules() for p in m.parameters(recurse=False)}
    assert all(isinstance(owners[i], (nn.Conv2d, nn.Linear)) for i in decayed)


def test_set_row_reaches_every_group_with_its_scale():
    model = small_network()
    optimizers = make_optimizers(model, make_config(bias_lr_scale=8.0, head_lr_scale=0.5))
    set_row(optimizers, 0.1, 0.87)
    filters, head, small = optimizers[0].param_groups
    assert [g["lr"] for g in (filters, head, small)] == pytest.approx([0.1, 0.05, 0.8])
    assert [g["momentum"] for g in (filters, head, small)] == [0.87] * 3
    assert head["params"] == [model.get_parameter("head.weight")] and {p.ndim for p in small["params"]} == {1}
    set_row(optimizers, 0.2, 0.9)  # scales are relative to the schedule, not to the row before
    assert [g["lr"] for g in (filters, head, small)] == pytest.approx([0.2, 0.1, 1.6])


def test_with_muon_the_tables_momentum_is_muons():
    optimizers = make_optimizers(small_network(), make_config(optimizer="muon", momentum=0.6))
    set_row(optimizers, 0.1, 0.87)
    muon, sgd = optimizers
    assert isinstance(muon, Muon) and isinstance(sgd, SGD)
    assert [g["momentum"] for g in muon.param_groups] == [0.87]
    assert [g["momentum"] for g in sgd.param_groups] == [0.6, 0.6]
    assert [g["lr"] for g in (*muon.param_groups, *sgd.param_groups)] == pytest.approx([0.1] * 3)


# SGD


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_equals_the_nesterov_formula(momentum):
    config = make_config(weight_decay=0.01, momentum=momentum, cycle_momentum=False, bias_lr_scale=3.0)
    model = small_network()
    optimizers = make_optimizers(model, config)
    plain = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    velocity = {n: torch.zeros_like(p) for n, p in plain.items()}
    for step, lr in enumerate((0.5, 0.1, 0.02)):
        with_gradients(model, step)
        set_row(optimizers, lr, momentum)
        optimizers[0].step()
        for name, p in model.named_parameters():
            if p.grad is not None:
                decay, scale = (0.01, 1.0) if p.ndim > 1 else (0.0, 3.0)
                g = p.grad.double() + decay * plain[name]
                velocity[name] = momentum * velocity[name] + g
                plain[name] -= lr * scale * (g + momentum * velocity[name])
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.double(), plain[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("as_tensors", [True, False])
def test_capturable_sgd_equals_torch_sgd(as_tensors):
    """Also with both as tensors. (At momentum 0 torch lets the old velocity stand, ours forgets it.)"""
    config = make_config(weight_decay=0.01, bias_lr_scale=3.0)
    models = [small_network().double() for _ in range(2)]
    (reference,), (ours,) = make_optimizers(models[0], config), make_optimizers(models[1], config, capturable=True)
    assert isinstance(ours, CapturableSGD)
    for step, (lr, momentum) in enumerate([(0.5, 0.9), (0.1, 0.3), (0.02, 0.8)]):
        for model in models:
            with_gradients(model, step)
        set_row([reference], lr, momentum)
        row = torch.tensor([lr, momentum], dtype=torch.float64)
        set_row([ours], *(row.unbind() if as_tensors else (lr, momentum)))
        reference.step()
        ours.step()
    for expected, found in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_momentum_may_pass_through_zero_in_the_table():
    model = with_gradients(small_network())
    optimizers = make_optimizers(model, make_config(momentum=0.0, cycle_momentum=False))
    weights = model.get_parameter("head.weight").detach().clone()
    for momentum in (0.9, 0.0, 0.9):
        set_row(optimizers, 0.1, momentum)
        assert optimizers[0].param_groups[0]["nesterov"]
        optimizers[0].step()
    assert not torch.equal(model.get_parameter("head.weight"), weights)


def test_a_first_step_that_overflows_leaves_no_trace(deterministic):  # uninitialised memory is then filled with NaN
    model = with_gradients(small_network())
    twin = with_gradients(small_network())
    (sgd,), (reference,) = (make_optimizers(m, make_config(optimizer="sgd")) for m in (model, twin))
    before, scaler = {n: p.detach().clone() for n, p in model.named_parameters()}, torch.amp.GradScaler("cpu", 1.0)
    scaler.scale(torch.ones(()))
    model.get_parameter("head.weight").grad = torch.full((10, 64), float("inf"))
    scaler.step(sgd)
    scaler.update()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    with_gradients(model)
    sgd.step()
    reference.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_a_weight_without_dimensions_is_trained():
    network = nn.Linear(3, 2)
    network.scale = nn.Parameter(torch.tensor(1.0))
    groups = parameter_groups(network, Optimizer(batch_size=8))
    assert any(p is network.scale for p in groups[2]["params"]) and sum(len(g["params"]) for g in groups) == 3


# Muon


@pytest.mark.parametrize("shape", [(4, 64, 64), (3, 64, 576), (3, 576, 64), (2, 16, 24)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for scale in (1e-3, 1e3):  # the scale of a gradient does not matter
        values = torch.linalg.svdvals(orthogonalize(scale * matrices, steps=5))
        assert values.quantile(0.05) > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("shape", [(3, 64, 576), (3, 576, 64)])
def test_three_steps_are_enough_for_filters(shape):
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_each_step_takes_the_singular_values_through_muons_polynomial(steps):
    values = torch.tensor([0.8, 0.6, 0.01, 0.0], dtype=torch.float64)
    expected = values / values.norm()
    for _ in range(steps):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    torch.testing.assert_close(orthogonalize(values.diag()[None], steps)[0], expected.diag(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", [(64, 96), (96, 64)])
def test_orthogonalized_matrix_keeps_the_singular_vectors(shape):
    matrix = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrix[0], full_matrices=False)
    rotated = u.T @ orthogonalize(matrix, steps=5)[0] @ vh.T
    assert (rotated - rotated.diagonal().diag()).abs().max() < 1e-5
    assert (rotated.diagonal() > 0).all()


def test_batched_equals_one_by_one():
    matrices = torch.randn(5, 32, 72, generator=torch.Generator().manual_seed(0))
    singly = torch.cat([orthogonalize(m[None]) for m in matrices])
    torch.testing.assert_close(orthogonalize(matrices), singly, rtol=1e-4, atol=1e-5)


def test_zero_gradient_stays_zero():
    assert (orthogonalize(torch.zeros(2, 8, 16)) == 0).all()


def test_muon_on_many_filters_equals_muon_on_each():
    torch.manual_seed(0)
    together = [nn.Parameter(torch.randn(16, 8, 3, 3)) for _ in range(3)] + [nn.Parameter(torch.randn(8, 16, 1, 1))]
    apart = [nn.Parameter(p.detach().clone()) for p in together]
    one, many = Muon(together, lr=0.1, momentum=0.6), [Muon([p], lr=0.1, momentum=0.6) for p in apart]
    for _ in range(3):
        for p, q in zip(together, apart, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        one.step()
        for muon in many:
            muon.step()
    for p, q in zip(together, apart, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def test_muon_step_is_nesterov_orthogonalized_at_a_fixed_norm():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(16, 8, 3, 3).to(memory_format=torch.channels_last))
    muon, velocity = Muon([p], lr=0.1, momentum=0.6), torch.zeros(16, 8, 3, 3)
    expected = p.detach().clone()
    for _ in range(3):
        p.grad = torch.randn(p.shape)
        velocity = 0.6 * velocity + p.grad
        update = (p.grad + 0.6 * velocity).reshape(1, 16, 72)
        expected = expected * (4.0 / expected.norm()) - 0.1 * orthogonalize(update)[0].view(16, 8, 3, 3)
        muon.step()
        torch.testing.assert_close(p.detach(), expected, rtol=1e-4, atol=1e-5)
    assert p.is_contiguous(memory_format=torch.channels_last)
