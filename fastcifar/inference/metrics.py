"""Quality of predicted probabilities, by torchmetrics. Shapes: N images, K classes."""

import torch
import torch.nn.functional as F
from torch import Tensor

CALIBRATION_BINS = 15


def quality(log_probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, negative log-likelihood (`nll`), calibration error (`ece`) and Brier score (`brier`).

    nll: mean over the images, in nats; for the softmax of logits it is their cross-entropy. ece: expected calibration
    error over 15 bins of the largest probability (Guo et al. 2017, arXiv:1706.04599). brier: mean over the images of
    the squared distance between the probabilities and the one-hot label, from 0 to 2 (Brier 1950).

    log_probabilities: [N, K] f32 or f64. labels: [N] int64 in 0..K-1. Raises ValueError for fewer than two classes, and
    for values that are not finite.
    """
    from torchmetrics.classification import MulticlassCalibrationError
    from torchmetrics.regression import MeanSquaredError

    probabilities, count = as_probabilities(log_probabilities), log_probabilities.shape[1]
    below_1 = probabilities.clamp(max=1 - torch.finfo(probabilities.dtype).eps)  # torchmetrics has one more bin for 1
    squared_error = MeanSquaredError(num_outputs=count)
    return {
        "accuracy": int((log_probabilities.argmax(1) == labels).sum()) / len(labels),
        "nll": F.nll_loss(log_probabilities.double(), labels).item(),
        "ece": float(MulticlassCalibrationError(count, n_bins=CALIBRATION_BINS)(below_1, labels)),
        "brier": float(squared_error(probabilities, F.one_hot(labels, count).float()).sum()),
    }


def per_class(log_probabilities: Tensor, labels: Tensor) -> tuple[list[dict[str, float]], Tensor]:
    """A row per class (`precision`, `recall`, `f1`, and how many `images` it has), and the confusion matrix.

    The matrix is int64 [K, K]: true class, predicted class. Precision is 0 for a class that is never predicted.
    Arguments and errors as for `quality`.
    """
    from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassF1Score, MulticlassPrecision
    from torchmetrics.classification import MulticlassRecall as Recall

    probabilities, count = as_probabilities(log_probabilities), log_probabilities.shape[1]
    kinds = {"precision": MulticlassPrecision, "recall": Recall, "f1": MulticlassF1Score}
    columns = {name: kind(count, average="none")(probabilities, labels).tolist() for name, kind in kinds.items()}
    matrix: Tensor = MulticlassConfusionMatrix(count)(probabilities, labels)
    images = matrix.sum(1).tolist()
    return [
        {**{name: column[k] for name, column in columns.items()}, "images": images[k]} for k in range(count)
    ], matrix


def as_probabilities(log_probabilities: Tensor) -> Tensor:
    """[N, K], within 0 and 1: torchmetrics would take a value above 1, by rounding, for logits."""
    if log_probabilities.shape[1] < 2:
        raise ValueError("the model knows one class only; there is nothing to tell apart")
    if log_probabilities.isnan().any() or (log_probabilities > 1e-3).any():
        raise ValueError("the outputs of the model are not finite; its weights are those of a run that has diverged")
    return log_probabilities.exp().clamp(0, 1)
