"""Settings from a hostile hand, and files damaged at random: --resume ends with 2 and one line, or it goes on.

FASTCIFAR_FUZZ_EXAMPLES sets the number of random mutations of each file (default 25).
"""

import json

import pytest
import torch
from commands import files, interrupted_run
from hypothesis import given
from hypothesis import strategies as st
from mutation import damaged, edits, many

from fastcifar.cli import train as command
from fastcifar.config.config import Config
from fastcifar.runs.config_file import ConfigFileError, config_from_plain

pytestmark = pytest.mark.usefixtures("here")

NAN = float("nan")


@pytest.fixture
def run(request):
    return interrupted_run(request)


def assert_told(call, run, told):
    """Refused in one line that has one of the words of `told` in it."""
    before = files(run)
    code, _, err = call("--resume", str(run))
    assert code == 2 and len(err) == 1 and any(word in err[0] for word in told.split("|")), err
    assert len(err[0]) < 6000 and files(run) == before


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("\udcff", "cannot be read"),
        (" " * (2 << 20), "cannot be read"),
        ("[]", "no table of names and values"),
        ("null", "no table of names and values"),
        ('{"__class__": 1}', "unknown setting '__class__'"),
        ('{"optimizer": {"__init__": 1}}', "unknown setting '__init__'"),
        ('{"epochs": "30"}', "epochs|optimizer|schedule"),
        ('{"seed": 1' + "0" * 6000 + "}", "config.json"),
        ("{}", "seed|epochs|batch_size"),
    ],
    ids=range(12),
)
def test_a_file_that_is_no_config(call, run, text, told):
    (run / "config.json").write_text(text, errors="surrogateescape")
    assert_told(call, run, told)


def put(values, path, value):
    *way, last = path.split(".")
    for key in way:
        values = values[key]
    values[last] = value


@pytest.mark.parametrize(
    ("path", "text", "told"),
    [
        ("epochs", '"30"', "epochs is '30'"),
        ("epochs", "1e999", "epochs is inf"),
        ("epochs", "NaN", "epochs is nan"),
        ("seed", "1" + "0" * 4000, "seed"),
        ("seed", "1" + "0" * 6000, "config.json"),
        ("schedule", '{"name": "multistep", "peak": 1, "milestones": [{}]}', "milestones"),
        ("schedule", '{"name": "multistep", "peak": 1, "milestones": {}}', "milestones"),
        ("schedule", '{"name": ["multistep"], "peak": 1}', "schedule.name"),
        ("schedule", '{"name": "__init__", "peak": 1}', "schedule.name"),
        ("schedule", '{"name": "constant"}', "peak"),
        ("schedule", "null", "schedule is no table of names and values"),
        ("optimizer", "[]", "optimizer is no table of names and values"),
        ("optimizer.batch_size", "true", "batch_size is True"),
        ("model.network", "[]", "network"),
        ("model.depth", "9", "unknown setting 'depth'"),
        ("tail", "true", "tail is no table of names and values"),
        ("run.runs", "0", "runs is 0"),
    ],
)  # fmt: skip
def test_a_setting_that_lies(call, run, path, text, told):
    values = json.loads((run / "config.json").read_text())
    put(values, path, "PLACE")
    (run / "config.json").write_text(json.dumps(values).replace('"PLACE"', text))
    assert_told(call, run, told)


@pytest.mark.parametrize(
    ("path", "value"), [("epochs", 1e15), ("run.extend_epochs", 1e15), ("data.subset", 10**15), ("epochs", 1e308)]
)
def test_settings_that_ask_for_too_much(call, run, path, value):
    """With and without a checkpoint that says otherwise."""
    config = json.loads((run / "config.json").read_text())
    put(config, "run.resume", str(run))
    put(config, path, value)
    (run / "config.json").write_text(json.dumps(config))
    for _ in range(2):
        code, _, err = call("--resume", str(run))
        assert (code, len(err)) == (2, 1), err
        (run / "checkpoint.pt").unlink(missing_ok=True)


# Random mutations


@pytest.mark.parametrize("name", ["checkpoint.pt", "config.json"])
def test_mutated_files_are_read_or_refused(call, run, monkeypatch, name):
    """Never a traceback: what can be read is resumed (training itself is left out here), the rest is refused."""
    monkeypatch.setattr(command, "train_and_report", lambda task, *more: command.initial_state(task, more[-1]))
    whole = (run / name).read_bytes()
    accepted = []

    @many
    @given(edits=edits)
    def one(edits):
        content = damaged(whole, edits)
        (run / name).write_bytes(content)
        code, _, err = call("--resume", str(run))
        assert (code, len(err)) in ((0, 0), (2, 1)), err
        accepted.append(code == 0 and content != whole)

    one()
    (run / name).write_bytes(whole)
    assert call("--resume", str(run))[0] == 0
    assert name == "config.json" or sum(accepted) <= max(2, len(accepted) // 4)


VALUES = st.sampled_from([None, -1, NAN, 1e999, "", [], {}, True, 10**30, b"x", [[1]]])


def test_mutated_contents_are_read_or_refused(run):
    """Values of a checkpoint replaced at random, the file itself being whole."""
    plain = torch.load(run / "checkpoint.pt", weights_only=True)["config"]
    parts = {name: part for name, part in plain.items() if isinstance(part, dict)}
    places = sorted([*plain, *(f"{name}.{setting}" for name, part in parts.items() for setting in part)])

    @many
    @given(place=st.sampled_from(places), value=VALUES)
    def one(place, value):
        changed = {**plain, **{name: dict(part) for name, part in parts.items()}}
        put(changed, place, value)
        try:
            assert isinstance(config_from_plain(changed, "here"), Config)
        except ConfigFileError as e:
            assert "\n" not in str(e)

    one()
