"""Metrics of probabilities against their formulas."""

import pytest
import torch
import torch.nn.functional as F

from fastcifar.inference.metrics import per_class, quality


@pytest.fixture
def case():
    """Labels as likely as the probabilities say: then some bins of the calibration are too sure, others not enough."""
    random = torch.Generator().manual_seed(0)
    log_p = (3 * torch.randn(500, 4, generator=random)).log_softmax(1)
    return log_p, log_p.exp().multinomial(1, generator=random)[:, 0]


def test_the_metrics_are_their_formulas(case):
    log_p, labels = case
    p = log_p.exp()
    measured = quality(log_p, labels)
    right = p.argmax(1) == labels
    assert measured["accuracy"] == pytest.approx(right.float().mean().item())
    assert measured["nll"] == pytest.approx(-log_p[range(500), labels].mean().item(), rel=1e-5)
    assert measured["brier"] == pytest.approx(((p - F.one_hot(labels, 4)) ** 2).sum(1).mean().item(), rel=1e-5)
    confidence, bins = p.max(1).values, (p.max(1).values * 15).ceil()
    gaps = [
        abs(right[bins == b].float().mean() - confidence[bins == b].mean()).item() * (bins == b).sum().item() / 500
        for b in range(1, 16) if (bins == b).any()
    ]  # fmt: skip
    assert measured["ece"] == pytest.approx(sum(gaps), rel=1e-4)


def test_the_table_by_class_comes_from_the_confusion_matrix(case):
    log_p, labels = case
    rows, matrix = per_class(log_p, labels)
    expected = torch.zeros(4, 4, dtype=torch.long)
    for true, predicted in zip(labels.tolist(), log_p.argmax(1).tolist(), strict=True):
        expected[true, predicted] += 1
    assert torch.equal(matrix, expected)
    for k, row in enumerate(rows):
        precision, recall = (matrix[k, k] / matrix[:, k].sum()).item(), (matrix[k, k] / matrix[k].sum()).item()
        assert (row["precision"], row["recall"]) == (pytest.approx(precision), pytest.approx(recall))
        assert row["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
        assert row["images"] == matrix[k].sum()


def test_a_sure_and_right_model_is_perfect_also_when_a_probability_is_rounded_above_1():
    labels = torch.arange(3)
    log_p = torch.where(F.one_hot(labels, 3).bool(), 1e-7, -torch.inf)
    assert quality(log_p, labels) == {
        "accuracy": 1, "nll": pytest.approx(0, abs=1e-6), "ece": pytest.approx(0, abs=1e-6), "brier": pytest.approx(0)
    }  # fmt: skip


@pytest.mark.parametrize("log_p", [torch.zeros(2, 1), torch.full((2, 3), torch.nan), torch.full((2, 3), torch.inf)])
def test_what_is_no_probability_is_refused(log_p):
    for measure in (quality, per_class):
        with pytest.raises(ValueError, match=r"one class only|not finite"):
            measure(log_p, torch.zeros(2, dtype=torch.long))


def test_a_probability_of_1_shares_the_last_bin():
    """50 images with 1, of which 5 are wrong, and 50 with 0.95, all right: 0.975 said, 0.95 right."""
    p = torch.full((100, 2), 0.05)
    p[:50] = torch.tensor([1.0, 0.0])
    p[50:, 0] = 0.95
    labels = torch.zeros(100, dtype=torch.int64)
    labels[:5] = 1
    assert quality(p.clamp(1e-30).log(), labels)["ece"] == pytest.approx(0.025, abs=1e-5)
