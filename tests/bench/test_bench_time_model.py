"""bench.time_model finds the line that made up seconds lie on, and predicts by it."""

import json

import pytest

from bench import time_model

STEP_S, IMAGE_S, RUN_S = 1e-3, 2e-6, 0.3
KINDS = ((7.5, 500), (7.0, 500), (7.0, 2000), (7.5, 1000), (8.0, 500))


def row(epochs: float, batch: int, late_s: float = 0.0) -> str:
    steps = int(epochs * (50_000 // batch))
    low_steps = 2 * (50_000 // batch)  # speedrun94 begins with two epochs in low resolution
    seconds = STEP_S * steps + IMAGE_S * (steps - low_steps) * batch + RUN_S + late_s
    return json.dumps({"recipe": "speedrun94", "num_steps": steps, "epochs": epochs, "compile": "off",
                       "augment": "torch", "fused_kernels": True, "time_s": {"train": seconds},
                       "variant": f"epochs={epochs} batch_size={batch}"})  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "one-process.jsonl").write_text("".join(row(*kind) + "\n" for kind in KINDS))
    (tmp_path / "one-process-fused.jsonl").write_text("")
    return tmp_path


def test_the_line_is_found_and_predicts_a_kind_that_was_left_out(folder):
    found = time_model.describe(time_model.read_runs(folder))
    assert found["seconds_per"] == pytest.approx({"step": STEP_S, "image": IMAGE_S, "run": RUN_S})
    assert len(found["kinds"]) == len(KINDS)
    assert all(abs(kind["error_left_out"]) < 1e-6 for kind in found["kinds"].values())


def test_a_kind_off_the_line_is_seen_best_where_it_is_left_out(folder):
    (folder / "one-process-fused.jsonl").write_text(row(7.0, 1000, late_s=0.2) + "\n")
    (off,) = (
        k
        for name, k in time_model.describe(time_model.read_runs(folder))["kinds"].items()
        if name == "350 steps, 7 epochs"
    )
    assert off["error_left_out"] < off["error"] < 0
    assert off["error_left_out"] == pytest.approx(-0.2 / off["measured_s"], rel=1e-3)


def test_with_as_many_kinds_as_coefficients_no_error_is_claimed(folder):
    runs = [run for run in time_model.read_runs(folder) if run.kind.endswith((" 7 epochs", "7.5 epochs"))][:3]
    assert all(kind["error_left_out"] is None for kind in time_model.describe(runs)["kinds"].values())


def test_what_is_predicted():
    seconds_per = {"step": STEP_S, "image": IMAGE_S, "run": RUN_S}
    one = time_model.predict(seconds_per, 8.0, 1000)
    assert one["then"] == pytest.approx(400 * STEP_S + 300_000 * IMAGE_S + RUN_S)
    share = time_model.OPERATIONS_NOW / time_model.OPERATIONS_THEN
    assert one["step_as_it_was"] - one["step_by_operations"] == pytest.approx(400 * STEP_S * (1 - share))


def test_runs_that_do_not_compare_are_left_out(folder):
    others = [json.loads(row(7.5, 500)) | change
              for change in ({"compile": "default"}, {"augment": "dali"}, {"recipe": "swa30"})]  # fmt: skip
    others.append({**json.loads(row(7.5, 500)), "variant": "cuda_graph=false"})
    (folder / "one-process-fused.jsonl").write_text("".join(json.dumps(o) + "\n" for o in others))
    assert len(time_model.read_runs(folder)) == len(KINDS)
