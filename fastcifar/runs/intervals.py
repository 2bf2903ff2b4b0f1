"""Statistics over runs that differ in their seed only: mean, standard deviation, 95% interval of the mean."""

import math
import statistics
from typing import Any

# Two-sided 95% points of Student's t for 1, 2, ... degrees of freedom; from 31 on Cornish-Fisher is exact to 0.001.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
        2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


def interval(values: list[float]) -> dict[str, Any]:
    """n, mean, standard deviation and 95% interval of the mean (Student's t); None where n is too small to tell."""
    n = len(values)
    mean = statistics.fmean(values) if n else None
    if n < 2 or mean is None:
        return {"n": n, "mean": mean, "std": None, "ci95": None}
    std = statistics.stdev(values)
    z = 1.959964
    far = z + (z**3 + z) / (4 * (n - 1)) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * (n - 1) ** 2)
    t = T_95[n - 2] if n <= 31 else far
    half = t * std / math.sqrt(n)
    return {"n": n, "mean": mean, "std": std, "ci95": [mean - half, mean + half]}


def summarize_runs(runs: list[dict[str, Any]], target: float | None) -> dict[str, Any]:
    """Statistics over the summaries of runs that differ in their seed only."""
    accuracy = [run["accuracy"] for run in runs]
    time_s = [run["time_s"]["train"] + run["time_s"]["swa"] + run["time_s"]["eval_final"] for run in runs]
    keep = ("dataset", "n_train", "n_test", "recipe", "scale", "epochs", "num_steps", "train_pflop", "device",
            "precision", "compile", "augment", "versions", "commit", "dirty")  # fmt: skip
    summary: dict[str, Any] = {"n": len(runs), **{k: runs[0][k] for k in keep}}
    summary["seeds"] = [run["seed"] for run in runs]
    summary["accuracy"], summary["time_to_accuracy_s"] = interval(accuracy), interval(time_s)
    for kind in ("accuracy_raw", "accuracy_swa", "accuracy_tta"):
        known = [run[kind] for run in runs if run[kind] is not None]
        summary[kind] = interval(known) if known else None
    if target is not None:
        summary["target"] = target
        summary["share_reached"] = sum(a >= target for a in accuracy) / len(accuracy)
    return summary
