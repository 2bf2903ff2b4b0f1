"""What a reader sees on the pictures of runs: names without doubles, whole epochs, and no marker over another."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import train_in_folder

from fastcifar.cli.schedule import preview
from fastcifar.config.config import Augment
from fastcifar.config.recipes import RECIPES
from fastcifar.optim.schedule_table import make_schedule_table
from fastcifar.runs import plots
from fastcifar.runs.results import RunResults


@pytest.fixture
def drawn(monkeypatch, curves):
    """The figures that would be saved."""
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def draw_run(config, epochs_done=None, figures=()):
    """curves.png of a run of ten steps an epoch whose two results are equal: the worst case for their markers."""
    schedule = make_schedule_table(config, 10)
    done = epochs_done or config.epochs
    ends = range(1, int(done) + 1)
    history = [{"epoch": e, "step": int(10 * e), "loss_train": 1 / e, "accuracy_test": 0.5} for e in ends]
    summary = {"num_steps": int(10 * done), "epochs": done, "accuracy_swa": 0.9, "accuracy_tta": 0.9,
               "dataset": "cifar10", "recipe": "swa30", "scale": "small", "seed": 0}  # fmt: skip
    plots.draw_curves(Path("curves.png"), history, schedule, summary, config)
    return figures[-1]


def ticks(axis):
    """Ticks of the x axis that are seen."""
    low, high = axis.get_xlim()
    return [float(x) for x in axis.get_xticks() if low <= x <= high]


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_curves_shade_and_name_the_parts_of_the_run(drawn):
    figure = draw_run(replace(RECIPES["swa30"], epochs=10.0), figures=drawn)
    for axis in figure.axes:
        spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axis.patches]
        assert spans == [(0, 6), pytest.approx((6.7, 10), abs=0.01)]
    assert texts(figure.legends[0])[-2:] == ["low resolution: trained at 24 pixels, tested at 32",
                                             "tail: weights are averaged (SWA)"]  # fmt: skip
    sizes = Augment(low_res_px=(16, 24), low_res_until=(0.25, 0.5))
    figure = draw_run(replace(RECIPES["swa30"], epochs=8.0, augment=sizes, tail=None), figures=drawn)
    assert [(patch.get_x(), patch.get_width()) for patch in figure.axes[0].patches] == [(0, 2), (2, 2)]
    assert len({*texts(figure.legends[0])}) == 5


def test_names_are_drawn_as_they_are():
    axis = plots.make_figure(1, 4, 3)[1][0][0]
    for name in ("_first", "cost_$5_$6", "plain"):
        axis.plot([0, 1], label=plots.literal(name))
    assert [text.strip() for text in texts(axis.legend())] == ["_first", r"cost_\$5_\$6", "plain"]


def test_a_picture_that_fails_is_a_warning(make_quick_task, monkeypatch, tmp_path, said):
    monkeypatch.setattr(plots, "draw_curves", lambda *_: [][0])
    result = train_in_folder(make_quick_task(epochs=1), tmp_path)
    assert any("curves.png: not drawn (IndexError" in line for line in said)
    assert (tmp_path / "summary.json").exists() and result.summary["num_steps"] == 8


@pytest.mark.parametrize("epochs_done", [None, 2.0])
def test_the_two_results_do_not_cover_each_other(drawn, epochs_done):
    figure = draw_run(replace(RECIPES["swa30"], epochs=10.0), epochs_done, drawn)
    figure.canvas.draw()
    axis = figure.axes[3]
    (star,), (plus,) = ([line for line in axis.lines if line.get_marker() == marker] for marker in "*P")
    (x1, _), (x2, _) = (axis.transData.transform(line.get_xydata())[0] for line in (star, plus))
    size = star.get_markersize() * figure.dpi / 72
    assert x2 - x1 >= size and x2 + size / 2 <= axis.bbox.x1


@pytest.mark.parametrize("epochs", [1.0, 2.0, 3.0, 7.5, 30.0])
def test_ticks_are_whole_epochs(drawn, epochs):
    config = replace(RECIPES["swa30"], epochs=epochs, tail=None)
    draw_run(config, figures=drawn)
    plots.draw_schedules(Path("s.png"), {"swa30": preview(config)})
    for axis in [axis for figure in drawn for axis in figure.axes]:
        assert all(x == int(x) for x in ticks(axis)) and len(ticks(axis)) >= 2


def test_the_lines_of_many_recipes_differ(drawn):
    names = [name for name in RECIPES if name != "plateau30"]
    plots.draw_schedules(Path("s.png"), {name: preview(RECIPES[name]) for name in names})
    (figure,) = drawn
    assert texts(figure.legends[0]) == names and len(figure.axes) == 4
    looks = [(line.get_color(), line.get_linestyle()) for line in figure.legends[0].get_lines()]
    assert len(set(looks)) == len(names) > 10 and f"{len(names)} recipes" in figure.get_suptitle()
    assert not any(axis.get_legend() for axis in figure.axes)


def test_one_recipe_is_drawn_once_and_named_in_the_title(drawn):
    plots.draw_schedules(Path("s.png"), {"cosine50": preview(RECIPES["cosine50"])})
    (figure,) = drawn
    assert len(figure.axes) == 2 and not figure.legends
    assert figure.get_suptitle() == "learning rate and momentum of cosine50"


def test_the_rate_of_a_first_stage_that_cools_is_dotted(drawn):
    plots.draw_schedules(Path("s.png"), {"speedrun94": preview(RECIPES["speedrun94"])})
    (figure,) = drawn
    (dotted,) = (line for axis in figure.axes for line in axis.get_lines() if line.get_linestyle() == ":")
    whole, cooled = figure.axes[0].get_lines()[0].get_ydata(), dotted.get_ydata()
    assert cooled[480] == whole[480] > 0 and 2 * cooled[560] == pytest.approx(whole[560])
    assert (cooled[640:] == 0).all() and len(cooled) == 800
    assert "dotted: first stage" in figure.get_suptitle()


def test_compared_runs_have_a_name_and_a_look_each(drawn):
    history = [{"epoch": e, "loss": 1 / e, "accuracy": 0.2 * e, "held_out": False} for e in (1, 2, 3)]
    run = RunResults(Path("run"), RECIPES["swa30"], history, {"accuracy": 0.6, "epochs": 3.0})
    names = [f"run {i}" for i in range(24)]
    plots.draw_comparison(Path("c.png"), [run] * 24, names)
    (figure,) = drawn
    assert texts(figure.legends[0]) == [f"{name}: 60.00%" for name in names]
    looks = [(line.get_color(), line.get_linestyle()) for line in figure.legends[0].get_lines()]
    assert all(a != b for a, b in itertools.combinations(looks, 2)) and "24 runs" in figure.get_suptitle()
    assert all(ticks(axis) == [0, 1, 2, 3] for axis in figure.axes)


def test_a_run_without_such_parts_does_not_name_them(drawn):
    figure = draw_run(replace(RECIPES["cosine50"], epochs=4.0), figures=drawn)
    assert not any(axis.patches for axis in figure.axes) and not figure.axes[3].get_legend()
    assert texts(figure.legends[0]) == ["raw weights", "averaged weights 90.00%", "with views 90.00%"]
