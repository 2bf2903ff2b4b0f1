"""The cold start is measured by processes; here they are forked from one that has imported torch."""

import json
from argparse import Namespace

import warm

from bench import cold_start


def test_quick(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(cold_start, "subprocess", Namespace(run=warm.run))
    assert cold_start.main(["--quick", "--out", str(tmp_path)]) == 0
    table = json.loads((tmp_path / "table.json").read_text())
    median = table["median_s"]
    assert table["starts"] == 1 and 0 < median["import"] < median["first_step"]
    assert "median of 1" in capfd.readouterr().out


def test_a_wrong_flag_is_told(tmp_path, capfd):
    assert cold_start.main(["--flags=--no-such-flag", "--out", str(tmp_path)]) == 2
    assert "--no-such-flag" in capfd.readouterr().err
