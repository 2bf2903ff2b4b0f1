"""A checkpoint from a hostile hand: --resume ends with 2 and one line, runs nothing and changes nothing."""

import io
import os
import pickle
import zipfile

import pytest
import torch
from commands import assert_refused, interrupted_run

from fastcifar.runs import checkpoint

pytestmark = pytest.mark.usefixtures("here")

NAN = float("nan")


@pytest.fixture
def run(request):
    return interrupted_run(request)


def rewrite(run, change):
    """checkpoint.pt with its content changed by `change(content)`."""
    path = run / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    content = change(content) or content
    torch.save(content, path)


def test_the_run_itself_goes_on(call, run):
    assert call("--resume", str(run))[0] == 0


# checkpoint.pt as a file


class Spell:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickled_code_does_not_run(call, run, tmp_path):
    proof = str(tmp_path / "it ran")
    (run / "checkpoint.pt").write_bytes(pickle.dumps(Spell(proof)))
    assert_refused(call, run, "checkpoint.pt: damaged or not a fastcifar checkpoint")
    for place in ("state", "config", "schema"):
        rewrite_with_spell(run, place, proof)
        assert_refused(call, run, "checkpoint.pt: damaged or not a fastcifar checkpoint")
    assert not os.path.exists(proof)


def rewrite_with_spell(run, place, proof):
    torch.save({"schema": 2, "config": {}, "digest": "", "state": {}, place: Spell(proof)}, run / "checkpoint.pt")


@pytest.mark.parametrize("damage", [b"", b"\0" * 1000, b"PK\x03\x04 no archive", b"{}", "cut", "half", "tail", "twice"])
def test_a_damaged_file(call, run, damage):
    path = run / "checkpoint.pt"
    whole = path.read_bytes()
    cuts = {"cut": whole[:-1], "half": whole[: len(whole) // 2], "tail": whole[100:], "twice": whole[:-50] + whole}
    path.write_bytes(cuts.get(damage, damage))
    if damage == "twice" and call("--resume", str(run))[0] == 0:
        return  # a zip file counts from its end: there, this one is whole
    assert_refused(call, run, "checkpoint.pt: damaged or not a fastcifar checkpoint")


def test_a_flipped_bit_in_a_weight(call, run):
    path = run / "checkpoint.pt"
    whole = bytearray(path.read_bytes())
    weight = torch.load(path, weights_only=True)["state"]["model"]["head.weight"].numpy().tobytes()
    whole[whole.find(weight) + 5] ^= 1
    path.write_bytes(whole)
    assert_refused(call, run, "damaged")


def test_a_compressed_file_is_not_unpacked(call, run):
    """torch would load it: a file of a megabyte could take a gigabyte."""
    path, packed = run / "checkpoint.pt", io.BytesIO()
    content = torch.load(path, weights_only=True)
    content["state"]["more"] = torch.zeros(10**6)
    torch.save(content, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    path.write_bytes(packed.getvalue())
    assert torch.load(path, weights_only=True)["state"]["more"].shape == (10**6,)
    assert_refused(call, run, "checkpoint.pt: damaged or not a fastcifar checkpoint")
    with pytest.raises(checkpoint.CheckpointError) as refusal:
        checkpoint.load(path)
    assert str(refusal.value.__cause__) == "compressed"  # and not what would be found in it


def test_a_huge_tensor_declared(call, run):
    path, packed = run / "checkpoint.pt", io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):  # a size of 8 or 24 becomes 2**40
                data = data.replace(b"K\x08\x85", b"\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85")
            new.writestr(name, data)
    path.write_bytes(packed.getvalue())
    assert_refused(call, run, "damaged")


@pytest.mark.parametrize("name", ["checkpoint.pt", "config.json"])
def test_a_folder_in_place_of_a_file(call, run, name):
    (run / name).unlink()
    (run / name).mkdir()
    code, _, err = call("--resume", str(run))
    assert code == 2 and len(err) == 1 and name in err[0]


# checkpoint.pt whose content lies


def put(content, path, value):
    *way, last = path.split(".")
    for key in way:
        content = content[int(key) if isinstance(content, list) else key]
    content[int(last) if isinstance(content, list) else last] = value


TOP = [
    ("schema", 1, "has schema 1, this version reads schema 2"),
    ("schema", 3, "has schema 3, this version reads schema 2"),
    ("schema", "1", "has no known schema"),
    ("schema", True, "has no known schema"),
    ("schema", None, "has no known schema"),
    ("state", [], "lacks config, digest or state"),
    ("config", "swa30", "lacks config, digest or state"),
    ("digest", b"abc", "lacks config, digest or state"),
    ("digest", "of other images", "the images are not those it was trained on"),
    ("config.seed", 1, "seed: 1 -> 0"),
    ("config.epochs", NAN, "epochs is nan"),
    ("config.optimizer.batch_size", -5, "batch_size is -5"),
    ("config.model.network", "resnet5000", "network is 'resnet5000'"),
    ("config.warp", 9, "unknown setting 'warp'"),
    ("config.model.warp", 9, "unknown setting 'warp'"),
    ("config.schedule.name", "per-step", "schedule per-step is a function from Python"),
    ("config.schedule", [], "schedule is no table of names and values"),
    ("config.tail", None, "swa_start: None -> 0.5"),
    ("config.seed", 10**5000, "checkpoint.pt"),
]
STATE = [
    ("step", NAN, "state.step is of type float instead of int"),
    ("step", True, "state.step is of type bool"),
    ("step", -1, "step is not within this run's 16"),
    ("step", 17, "step is not within this run's 16"),
    ("step", 2**63, "step is not within this run's 16"),
    ("step", 10**5000, "damaged"),
    ("step", 16, "history has not the rows of 16 steps"),
    ("step", 0, "mean.count is not within"),
    ("step", 3, "history has not the rows of 3 steps"),
    ("mean.count", -1, "mean.count is not within"),
    ("mean.count", 15, "mean.count is not within"),
    ("mean.count", 1.0, "mean.count is of type float"),
    ("loss_scale", 0.0, "loss_scale is not a value that training can reach"),
    ("loss_scale", NAN, "loss_scale is not a number"),
    ("loss_scale", 1e30, "loss_scale is not a value that training can reach"),
    ("loss_sum", torch.tensor(NAN), "loss_sum is not finite"),
    ("loss_sum", torch.zeros(2), "loss_sum is float32 [2] instead of float32 []"),
    ("model", {}, "state.model is of type dict"),
    ("model", [], "model is of type list"),
    ("optimizers", [], "state.optimizers has 0 entries"),
    ("optimizers", 3, "state.optimizers is of type int"),
    ("optimizers.0", [], "state.optimizers.0 has 0 entries"),
    ("optimizers.0.0", torch.zeros(3), "optimizers.0.0 is float32 [3]"),
    ("optimizers.0.0", [1], "no plain tensor"),
    ("schedule.table", torch.zeros(16, 2), "schedule.table is float32"),
    ("schedule.table", torch.zeros(10**6, 2, dtype=torch.float64), "schedule.table is float64 [1000000, 2]"),
    ("schedule.table", torch.full((16, 2), 1e30, dtype=torch.float64), "not the one these settings make"),
    ("schedule.more", 1, "schedule has other entries"),
    ("history", {}, "history is no list of rows"),
    ("history", [], "history has not the rows of 14 steps"),
    ("history.0", 3, "history is no list of rows"),
    ("history.0.step", 7, "history has not the rows of 14 steps"),
    ("history.0.lr", "high", "history.0.lr is of type str"),
    ("history.0.loss_train", NAN, "history.0.loss_train is not a number"),
    ("history.0.more", 1, "history.0 has other entries"),
    ("time_s", None, "time_s is of type NoneType"),
    ("time_s.train", NAN, "time_s.train is not a number"),
    ("extra", 1, "state has other entries"),
]


@pytest.mark.parametrize(("path", "value", "told"), TOP, ids=[f"{p}-{i}" for i, (p, _, _) in enumerate(TOP)])
def test_a_head_that_lies(call, run, path, value, told):
    rewrite(run, lambda content: put(content, path, value))
    assert_refused(call, run, told)


@pytest.mark.parametrize(("path", "value", "told"), STATE, ids=[f"{p}-{i}" for i, (p, _, _) in enumerate(STATE)])
def test_a_state_that_lies(call, run, path, value, told):
    rewrite(run, lambda content: put(content["state"], path, value))
    assert_refused(call, run, told)


TENSORS = {
    "of another shape": lambda t: torch.zeros(3, 3),
    "of another type": lambda t: t.double(),
    "not finite": lambda t: t.fill_(NAN),
    "sparse": lambda t: t.flatten()[:, None].to_sparse(),
    "without memory": lambda t: t.to("meta"),
    "a number": lambda t: 0.5,
}


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("kind", TENSORS)
def test_a_weight_that_lies(call, run, kind):
    def change(content):
        model = content["state"]["model"]
        model["head.weight"] = TENSORS[kind](model["head.weight"])

    rewrite(run, change)
    assert_refused(call, run, "head.weight")


def test_tensors_that_share_or_spare_memory_do_no_harm(call, run):
    """A momentum of the right shape that is one number in memory, and weights that want gradients."""

    def change(content):
        momenta = content["state"]["optimizers"][0]
        momenta[0] = torch.zeros(1).expand(momenta[0].shape)
        model = content["state"]["model"]
        model["head.weight"] = torch.nn.Parameter(model["head.weight"])

    rewrite(run, change)
    assert call("--resume", str(run))[0] == 0


def test_a_list_of_another_length():
    for saved in ([1], [1, 2, 3]):
        with pytest.raises(ValueError, match=f"x has {len(saved)} entries instead of 2"):
            checkpoint.check(saved, [1, 2], "x")
