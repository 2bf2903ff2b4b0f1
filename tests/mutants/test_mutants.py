"""The list of faults fits the code, and the program that runs it tells what is caught from what is not."""

import subprocess

import pytest
import run_mutants
from faults import ROOT, Fault, read_faults

FAULTS = read_faults()


def test_the_list_is_long_and_has_every_name_once():
    assert len(FAULTS) >= 80 and len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_the_old_text_of_every_fault_is_in_the_code_once():
    """Else the message says what to do."""
    wrong = []
    for fault in FAULTS:
        try:
            compile(fault.spoiled((ROOT / fault.file).read_text()), fault.file, "exec")
            assert fault.old != fault.new and fault.tests, fault.name
        except (ValueError, SyntaxError, OSError) as e:
            wrong.append(f"{fault.name}: {e}")
    assert not wrong


def test_the_tests_of_every_fault_exist():
    missing = []
    for fault in FAULTS:
        for test in fault.tests:
            path, _, function = test.partition("::")
            names = (ROOT / path).read_text() if (ROOT / path).exists() else ""
            if not names or (function and f"def {function.partition('[')[0]}(" not in names):
                missing.append(f"{fault.name}: no {test}; name another")
    assert not missing


def test_a_text_that_has_changed_is_told_with_what_to_do():
    fault = Fault("optim", "a", "b", "c.py", old="x = 1", new="x = 2", tests=("t.py",))
    assert fault.spoiled("y = 0\nx = 1\n") == "y = 0\nx = 2\n"
    for text in ("x = 3", "x = 1\nx = 1"):
        with pytest.raises(ValueError, match=r"change `old` and `new` in tests/mutants/faults/optim\.toml"):
            fault.spoiled(text)


CODE = "def double(x):\n    return 2 * x\n\n\ndef triple(x):\n    return 3 * x\n"
TEST = """
import pytest
from code_under_test import double, triple

def test_double():
    assert double(2) == 4

def test_triple():
    assert triple(0) == 0

@pytest.mark.skip(reason="no card")
def test_skipped():
    assert double(2) == 4
"""
LIST = """
[[fault]]
name = "double"
what = "three times"
file = "code_under_test.py"
old = "return 2"
new = "return 3"
tests = ["test_code.py::test_double"]

[[fault]]
name = "triple"
what = "four times"
file = "code_under_test.py"
old = "return 3"
new = "return 4"
tests = ["test_code.py::test_triple"]

[[fault]]
name = "skipped"
what = "five times"
file = "code_under_test.py"
old = "2 * x"
new = "5 * x"
tests = ["test_code.py::test_skipped"]

[[fault]]
name = "no-python"
what = "no code at all"
file = "code_under_test.py"
old = "def triple"
new = "dfe triple"
tests = ["test_code.py::test_double"]
"""


@pytest.fixture
def tree(tmp_path):
    """A project of two functions, of which one is tested too little."""
    root = tmp_path / "tree"
    (root / "faults").mkdir(parents=True)
    for name, text in (("code_under_test.py", CODE), ("test_code.py", TEST), ("faults/sums.toml", LIST)):
        (root / name).write_text(text)
    (root / "pytest.ini").write_text("[pytest]\naddopts = -ra\npythonpath = .\n")
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    return root


def test_faults_are_caught_or_survive_and_the_tree_stays_as_it_is(tree, monkeypatch, capsys):
    monkeypatch.setattr(run_mutants, "PRELOADED", ["pytest", "hypothesis"])
    assert run_mutants.main(["double", "skipped"], tree, tree / "faults") == 0
    assert run_mutants.main(["sums", "--jobs", "2", "--table", str(tree / "t.txt")], tree, tree / "faults") == 1
    table = (tree / "t.txt").read_text().splitlines()
    assert [line.split()[:2] for line in table[:4]] == [
        ["double", "caught"], ["skipped", "skipped"], ["triple", "SURVIVED"], ["no-python", "BROKEN"]
    ]  # fmt: skip
    assert table[0].endswith("three times  [test_code.py::test_double]")
    assert table[-1] == "4 faults: 1 caught, 1 SURVIVED, 1 BROKEN, 1 skipped"
    assert (tree / "code_under_test.py").read_text() == CODE
    said = capsys.readouterr().out
    assert said.count("\ncaught ") + said.startswith("caught ") == 1, "the second call runs what is left alone"


def test_tests_that_fail_without_a_fault_are_an_error(tree, monkeypatch):
    monkeypatch.setattr(run_mutants, "PRELOADED", ["pytest", "hypothesis"])
    (tree / "test_code.py").write_text(TEST.replace("== 4", "== 5"))
    with pytest.raises(SystemExit, match="without a fault the tests do not pass"):
        run_mutants.main(["double"], tree, tree / "faults")


@pytest.mark.parametrize(("words", "told"), [(["quadruple"], "no fault and no room"), (["double"], "is 0 times in")])
def test_a_list_that_does_not_fit_is_an_error(tree, words, told):
    (tree / "code_under_test.py").write_text(CODE.replace("2", "4"))
    with pytest.raises(SystemExit, match=told):
        run_mutants.main(words, tree, tree / "faults")
