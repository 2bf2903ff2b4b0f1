"""`progress=True` from Python: a bar in a notebook and on a terminal, a line per epoch where output is piped."""

import re
import sys
import types

import pytest
from conftest import QUICK, make_dataset
from pseudo_terminal import pseudo_terminal

import fastcifar
from fastcifar.observers.progress import Bar, Lines, NotebookBar, make_display

pytestmark = pytest.mark.usefixtures("tiny_network")


def train(**arguments):
    return fastcifar.train(QUICK, data=make_dataset(), progress=True, epochs=2, **arguments)


def test_where_output_is_piped_there_is_a_line_per_epoch_and_one_at_the_end(capfd):
    result = train()
    out, err = capfd.readouterr()
    first, second, last = out.splitlines()
    assert first.startswith("epoch 1/2  cycle  32 px") and second.startswith("epoch 2/2") and err == ""
    assert last.startswith(f"accuracy {result.accuracy:.2%} (raw ")


def test_on_a_terminal_a_bar_stands_below_the_lines(monkeypatch):
    with pseudo_terminal(monkeypatch) as shown:
        train()
    (text,) = shown
    assert "steps, left" in text and re.search(r" \d+/16 ", text)
    assert text.count("epoch 1/2 ") == text.count("epoch 2/2 ") == text.count("accuracy ") - 2 == 1


@pytest.fixture
def notebook(monkeypatch):
    """The pictures of a notebook's one output, as a kernel with IPython makes them."""
    pictures = []

    class Handle:
        def update(self, shown):
            pictures.append(shown._repr_mimebundle_((), ())["text/html"])

    def display(shown, display_id):
        assert display_id is True
        Handle().update(shown)
        return Handle()

    there = types.SimpleNamespace(display=display)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(display=there))
    monkeypatch.setitem(sys.modules, "IPython.display", there)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    return pictures


def test_in_a_notebook_one_output_is_drawn_anew_and_the_lines_are_printed(notebook, capfd):
    result = train()
    lines = capfd.readouterr().out.splitlines()
    assert [line[:10] for line in lines[:2]] == ["epoch 1/2 ", "epoch 2/2 "]
    assert lines[2].startswith(f"accuracy {result.accuracy:.2%}") and len(lines) == 3
    assert len(notebook) == 18  # the empty bar, 16 steps and the end
    for shown, done in zip(notebook, [0, *range(1, 17), 16], strict=True):
        assert shown.startswith("<pre") and re.search(rf"\b{done}/16\b", shown) and f"{done / 16:.0%}" in shown


def test_a_long_run_draws_a_hundred_pictures(notebook):
    bar = NotebookBar(100_000)
    for step in range(1, 100_001):
        bar.move(step)
    assert len(notebook) == 101


def test_the_display_ends_with_the_training_also_where_it_fails(monkeypatch, notebook):
    ended = []
    monkeypatch.setattr(NotebookBar, "close", lambda bar: ended.append(bar))

    class Fails(fastcifar.Observer):
        def on_step(self, run):
            raise LookupError("enough")

    with pytest.raises(LookupError):
        train(observers=[Fails()])
    assert len(ended) == 1


def test_the_display_is_chosen_by_where_output_goes(monkeypatch, notebook):
    kinds = [type(make_display(QUICK, 8))]
    monkeypatch.setattr("rich.console._is_jupyter", lambda: False)
    kinds.append(type(make_display(QUICK, 8)))
    monkeypatch.setattr("fastcifar.observers.progress.on_terminal", lambda: True)
    bar = make_display(QUICK, 8)
    bar.close()
    assert [*kinds, type(bar)] == [NotebookBar, Lines, Bar]
