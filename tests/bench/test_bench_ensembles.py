"""The bench of ensembles: its figures, its intervals, and outputs that are measured once."""

import itertools
import json
from pathlib import Path
from statistics import fmean

import pytest
from test_bench import one_commit, one_thread, results  # noqa: F401 (fixtures)

from bench import ensembles
from fastcifar.runs import intervals


def test_quick(tmp_path: Path, tiny_network: None, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    out = tmp_path / "out"
    assert ensembles.main(["--quick", "--out", str(out)]) == 0
    table = {row["model"]: row for row in results(out)["table"]}
    names = ["one model", "SWA", "SWAG", "deep ensemble of 2", "Multi-SWA of 2", "Multi-SWAG of 2"]
    assert list(table) == names and all(row["ensembles"] == 3 for row in table.values())
    runs = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    pairs = [json.loads(line) for line in (out / "ensembles.jsonl").read_text().splitlines()]
    for name, kind in zip(names[:3], ("raw", "swa", "swag"), strict=True):
        for metric in ("accuracy", "nll", "ece", "brier"):
            expected = intervals.interval([run[kind][metric] for run in runs])
            assert table[name][metric]["mean"] == pytest.approx(expected["mean"])
            assert table[name][metric]["ci95"] == pytest.approx(expected["ci95"])
    mean = fmean(row["nll"] for row in pairs if row["kind"] == "raw")
    assert table["deep ensemble of 2"]["nll"]["mean"] == pytest.approx(mean)
    added = mean - table["one model"]["nll"]["mean"]
    assert table["deep ensemble of 2"]["added"]["nll"]["mean"] == pytest.approx(added) and added < 0
    assert table["deep ensemble of 2"]["nll"]["ci95"] and "deep ensemble of 2" in (out / "table.md").read_text()

    before = (out / "table.md").read_text()
    monkeypatch.setattr(ensembles, "outputs_of", None)  # what was measured is not measured again
    assert ensembles.main(["--quick", "--runs-folder", str(out / "runs"), "--out", str(out)]) == 0
    assert (out / "table.md").read_text() == before
    capsys.readouterr()
    assert ensembles.main(["--runs-folder", str(out / "runs"), "--out", str(out)]) == 2
    assert "has 3 runs with swag.safetensors; --members is 5" in capsys.readouterr().err


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_interval_of_a_mean_is_student_s_however_many_share_it(size: int) -> None:
    """An ensemble whose figure is the mean of its members' has that of the runs: the pseudo-values are theirs."""
    own = [0.3, 0.9, 0.4, 0.5, 0.1]
    values = {subset: fmean(own[i] for i in subset) for subset in itertools.combinations(range(5), size)}
    assert ensembles.pseudo_values(values, 5) == pytest.approx(own)


def test_an_ensemble_of_all_runs_has_no_interval() -> None:
    rows = {("raw", (i,)): dict.fromkeys(ensembles.METRICS, float(i)) for i in range(3)}
    rows["raw", (0, 1, 2)] = dict.fromkeys(ensembles.METRICS, 5.0)
    _, together = ensembles.summarize(rows, 3)
    assert together["nll"] == {"n": 1, "mean": 5.0, "std": None, "ci95": None}
    assert together["added"]["nll"]["mean"] == 4.0 and together["added"]["nll"]["ci95"] is None
