"""Every bench with --quick, and the command that runs all of them within a time budget."""

import json
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import warm
from processes import TINY
from test_bench import one_commit, one_thread, results  # noqa: F401 (fixtures)

from bench import compare, compile, design, gpu, loader, schedules, step, sweep, time_to_accuracy
from fastcifar.config.recipes import RECIPES
from fastcifar.training.hardware import cpu_multiplies_bf16


def test_gpu_continues_after_failures_and_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    table = (
        f"import pathlib; p = pathlib.Path({str(out / 'tests')!r}); p.mkdir(); (p / 'table.md').write_text('figures');"
        "print('collected'); print('9 passed')"
    )
    parts = [
        gpu.Part("bad", ["-c", "raise SystemExit('broken')"], 60, needs=()),
        gpu.Part("missing", ["-c", "pass"], 60, needs=("no_such_package",)),
        gpu.Part("tests", ["-c", table], 60, needs=()),
        gpu.Part("hangs", ["-c", "import time; print('begun', flush=True); time.sleep(600)"], 600, needs=()),
        gpu.Part("late", ["-c", "pass"], 60, needs=()),
    ]
    monkeypatch.setattr(gpu, "plan", lambda options: parts)
    monkeypatch.setattr(gpu, "GRACE_S", 1.0)
    monkeypatch.setattr(gpu, "LEAST_S", 2.0)
    assert gpu.main(["--out", str(out), "--budget-s", "8"]) == 1
    index = json.loads((out / "index.json").read_text())
    assert index["took_s"] < 8
    status = {part["name"]: part["status"] for part in index["parts"]}
    assert status == {"bad": "failed", "missing": "left out", "tests": "done", "hangs": "cut", "late": "left out"}
    reasons = {part["name"]: part["reason"] for part in index["parts"]}
    assert reasons["tests"] == "9 passed"
    assert "broken" in reasons["bad"] and "no_such_package" in reasons["missing"] and "budget" in reasons["late"]
    assert "figures" in (out / "report.md").read_text() and (out / "logs" / "hangs.txt").read_text() == "begun\n"


def test_gpu_goes_on_where_a_call_before_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = "from pathlib import Path; p = Path({!r}); p.write_text(p.read_text() + 'x' if p.exists() else 'x')"
    good, bad = (str(tmp_path / name) for name in ("good", "bad"))
    words = ["--out", str(tmp_path / "out"), "--budget-s", "60"]
    once = tmp_path / "out" / "once"
    once.mkdir(parents=True)
    (once / "left.txt").touch()
    monkeypatch.setattr(gpu, "plan", lambda _: [
        gpu.Part("done", ["-c", write.format(good)], 60, needs=()),
        gpu.Part("fails", ["-c", write.format(bad) + "; raise SystemExit(3)"], 60, needs=()),
        gpu.Part("once", ["-c", f"from pathlib import Path; assert not Path({str(once)!r}).exists()"], 60, True, ()),
    ])  # fmt: skip
    assert gpu.main(words) == gpu.main(words) == 1
    assert (Path(good).read_text(), Path(bad).read_text()) == ("x", "xx")
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert [(part["name"], part["status"]) for part in index["parts"]] == [
        ("done", "done"), ("fails", "failed"), ("once", "done"),
    ]  # fmt: skip
    assert gpu.main([*words, "--only", "done"]) == 0 and Path(good).read_text() == "xx"
    assert gpu.main([*words, "--set", "epochs=2"]) == 1 and Path(good).read_text() == "xxx"  # other runs than those


def test_gpu_plans_commands_that_the_benches_understand(tmp_path: Path) -> None:
    options = Namespace(out=tmp_path, data="auto", peers=["airbench94=here"], quick=True, set="")
    parts = gpu.plan(options)
    assert [part.name for part in parts] == ["tests", "loader", "swa30", "compare", "step", "compile", "schedules"]
    modules = {"loader": loader, "time_to_accuracy": time_to_accuracy, "step": step, "compare": compare,
               "schedules": schedules, "compile": compile}  # fmt: skip
    import tyro

    for part in parts[1:]:
        module = modules[part.arguments[1].removeprefix("bench.")]
        read = tyro.cli(module.Options, args=part.arguments[2:])
        assert read.quick and read.out == tmp_path / part.name
    options.quick = False
    options.set = "fused_kernels=false"
    parts = gpu.plan(options)
    order = [part.name for part in parts]
    recipe, batches, screened = ([f"{name}{kind}" for kind in ("-list", "", "-effects")]
                                 for name in ("recipe", "batches", "94"))  # fmt: skip
    begin = ["tests", "step-500", "step-1000", "speedrun94", *recipe, *batches]
    assert order[: len(begin) + 7] == [*begin, *screened, "profile", "step-16", "step-2000", "loader"]
    assert order.index("loader") < order.index("compare") and len(order) == len(set(order))
    first = parts[: len(begin) + len(screened)]
    assert sum(part.most_s for part in first if not part.name.endswith(("-list", "-effects"))) <= 540
    assert {part.name: "--hold-out" in part.arguments for part in parts if part.name in ("recipe", "94", "95")} == {
        "recipe": False, "94": True, "95": True,
    }  # fmt: skip
    for part in parts:
        if part.arguments[1] == "bench.step":
            tyro.cli(step.Options, args=part.arguments[2:])
        if part.arguments[1] == "bench.design" and part.name.endswith("-list"):
            assert design.main(part.arguments[2:]) == 0
        if part.arguments[1] == "bench.sweep":
            read = tyro.cli(sweep.Options, args=part.arguments[2:])
            assert read.list and len(sweep.read_list(read.list)) >= 20 and read.set == "fused_kernels=false"
        if part.name == "profile":
            assert "--no-fused-kernels" in part.arguments and part.anew
    recipes = {"speedrun94", "swa30", "accurate96"}
    assert recipes <= {part.name for part in gpu.plan(options)} and recipes <= set(RECIPES)


def test_schedules_quick(tmp_path: Path, tiny_network: None) -> None:
    """The pictures also have recipes that measure the accuracy at their end only."""
    recipes = ["speedrun94", "onecycle30"]
    argv = ["--quick", "--data", "synthetic", "--subset", "1000", "--recipes", *recipes, "--scale", "small"]
    assert schedules.main([*argv, "--out", str(tmp_path)]) == 0
    table = results(tmp_path)["table"]
    assert sorted(row["recipe"] for row in table) == sorted(recipes)
    best = [max(row[k]["mean"] or 0 for k in ("accuracy_raw", "accuracy_swa")) for row in table]
    assert best == sorted(best, reverse=True)  # which recipe is best after two epochs is chance; the order is not
    assert all((tmp_path / name).stat().st_size for name in ("accuracies.png", "learning_rates.png", "table.md"))


def test_default_variants_of_a_cpu_are_eager_and_in_dtypes_that_it_multiplies() -> None:
    found = step.default_variants(step.Options(device="cpu"))
    assert found[:2] == ("fp32", "fp32-nchw")
    assert found[2:] == (("bf16",) if cpu_multiplies_bf16() else ())
    assert {step.configure(name, step.Options(device="cpu")).machine.compile for name in found} == {"off"}


def test_time_to_accuracy_quick(tmp_path: Path, tiny_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32: bf16 takes ten times as long where a CPU emulates it. The cold and the warm process are forked."""
    monkeypatch.setattr(time_to_accuracy, "subprocess", Namespace(run=warm.run, DEVNULL=subprocess.DEVNULL))
    flags = ["--quick", "--runs", "1", "--data", "synthetic", "--vary", "lr_peak=0.5", "--out", str(tmp_path)]
    assert time_to_accuracy.main([*flags, "--set", f"precision=fp32 shape={TINY}"]) == 0
    table = results(tmp_path)
    assert table["process_s"]["warm"]["mean"] > 0 and not table["failed"]


def test_gpu_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real part, with fewer images: a plain DataLoader takes them one by one."""
    planned = gpu.plan

    def with_few_images(options: Namespace) -> list[gpu.Part]:
        (part,) = (part for part in planned(options) if part.name == "loader")
        part.arguments += ["--images", "300", "--batches", "100", "--executors", "torch", "dataloader"]
        return [part]

    monkeypatch.setattr(gpu, "plan", with_few_images)
    assert gpu.main(["--quick", "--only", "loader", "--budget-s", "300", "--out", str(tmp_path)]) == 0
    assert "images/s" in (tmp_path / "report.md").read_text()


def test_the_gpu_tests_of_the_plan_pass_or_are_skipped(tmp_path: Path) -> None:
    part = gpu.plan(Namespace(out=tmp_path, data="auto", peers=[], quick=True, set=""))[0]
    done = warm.run([sys.executable, *part.arguments], cwd=gpu.ROOT)
    assert part.name == "tests" and done.returncode == 0 and re.search(r"\d (passed|skipped)", done.stdout), done


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compile_quick(tmp_path: Path) -> None:
    """Slow, because a C++ compiler takes a minute for the network."""
    assert compile.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    (row,) = results(tmp_path)["table"]
    assert row["compile_cpu_s"]["cold"] > row["compile_cpu_s"]["filled"] > 0 and row["step_ms"] > 0


def test_compile_pays_after_the_epochs_that_save_its_seconds() -> None:
    def row(mode: str, step_ms: float, cold_s: float = 0.0) -> dict[str, Any]:
        return {"mode": mode, "warm_up_s": {"cold": 1 + cold_s, "filled": 1 + cold_s / 10}, "pflop_per_step": 1e-4,
                "cpu_s": {"cold": 9.0, "filled": 9.0}, "step_ms": {"cold": step_ms, "filled": step_ms}}  # fmt: skip

    rows = [row("off", 9.0), row("default", 6.0, 30.0), row("max-autotune", 12.0, 60.0), row("off", 11.0)]
    pays, never, failed = compile.results([*rows, {"mode": "reduce-overhead", "error": "no compiler"}], batch=500)
    assert pays["saved_s_per_epoch"] == pytest.approx(0.4)  # 4 ms in each of 100 steps
    assert pays["saved_s_per_pflop"] == pytest.approx(40)
    assert pays["break_even_epochs"] == pytest.approx({"cold": 75.0, "filled": 7.5})
    assert never["saved_s_per_epoch"] == pytest.approx(-0.2)
    assert never["break_even_epochs"] == {"cold": None, "filled": None}
    assert failed == {"mode": "reduce-overhead", "error": "no compiler"}
