"""A bar where there is a terminal, and plain lines of the log where there is none."""

import logging
import os
from types import SimpleNamespace

import pytest

from proda.utils.progress import LOGGER, ConsoleHandler, Progress, track


@pytest.fixture
def clock(monkeypatch):
    """Time that passes by assignment to ``clock.now``."""
    time = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("proda.utils.progress.time", SimpleNamespace(monotonic=lambda: time.now))
    return time


def lines_of(caplog, clock, *, total: int, seconds: float, **options) -> list[str]:
    """The lines of work whose steps take ``seconds`` each."""
    caplog.set_level("INFO", logger=LOGGER)
    progress = Progress("iteration", total, **options)
    for done in range(progress.first + 1, total + 1):
        clock.now += seconds
        progress.update(done)
    progress.close()
    return caplog.messages


def test_a_line_says_position_figures_and_time_left(caplog, clock):
    lines = lines_of(caplog, clock, total=800, seconds=0.25, figures=lambda: "loss 0.41")
    assert lines[0] == "iteration 120/800 (15 %), loss 0.41, 2 min 50 s left"
    assert lines[1].startswith("iteration 240/800 (30 %)") and len(lines) == 6  # one every 30 seconds


@pytest.mark.parametrize(
    ("total", "seconds", "first"),
    [
        (1000, 10, ["3/1000", "53/1000", "103/1000"]),  # a line early, and then one for every 5 %
        (1000, 300, ["1/1000", "3/1000", "5/1000"]),  # one every ten minutes
        (10, 2, []),  # short work
    ],
)
def test_lines_are_neither_many_nor_far_apart(caplog, clock, total, seconds, first):
    lines = lines_of(caplog, clock, total=total, seconds=seconds)
    assert [line.split()[1] for line in lines[:3]] == first


def test_resumed_work_goes_on_at_its_position_and_at_the_speed_of_its_own_steps(caplog, clock):
    lines = lines_of(caplog, clock, total=100, seconds=10, done=50)
    assert lines[0] == "iteration 53/100 (53 %), 7 min 50 s left"


def test_nothing_but_text_comes_out_where_there_is_no_terminal(capfd, caplog, clock):
    caplog.set_level("INFO", logger=LOGGER)
    for _ in track(range(50), "image"):
        clock.now += 10
    out = "".join((*capfd.readouterr(), *caplog.messages))
    assert "image 3/50 (6 %), 7 min 50 s left" in out and not set("\r\x1b") & set(out)


def test_a_terminal_has_a_bar_and_no_lines(terminal, caplog, clock):
    assert lines_of(caplog, clock, total=40, seconds=10, keep=True, figures=lambda: "loss 0.41") == []
    last = terminal.getvalue().split("\r")[-1]
    assert last.startswith("iteration 40/40 100% |") and last.rstrip("\n").endswith("left, loss 0.41")


def test_a_resumed_bar_begins_at_its_position(terminal):
    Progress("iteration", 100, done=50).close()
    assert "iteration 50/100  50% |" in terminal.getvalue().split("\r")[1]


def test_a_bar_inside_another_vanishes_and_the_other_stays(terminal):
    outer = Progress("iteration", 2, keep=True)
    for _ in track(range(3), "validation, batch"):
        assert "validation, batch" in terminal.getvalue()
    outer.update(2)
    outer.close()
    screen = shown(terminal.getvalue())
    assert "iteration 2/2" in screen and "validation" not in screen


def test_a_bar_is_closed_when_its_work_ends_early(terminal):
    for _ in track(range(3), "image"):
        break
    assert "image" not in shown(terminal.getvalue())


def test_items_without_a_length_are_yielded_without_a_bar(terminal):
    assert list(track(iter("ab"), "letter")) == ["a", "b"] and list(track([], "letter")) == []
    assert list(track("ab", "letter", show=False)) == ["a", "b"] and terminal.getvalue() == ""


def test_a_record_has_a_line_of_its_own_above_an_open_bar(terminal):
    progress = Progress("iteration", 10, keep=True)
    handler = ConsoleHandler(terminal)
    handler.handle(logging.makeLogRecord({"msg": "mIoU 0.5", "levelno": logging.INFO}))
    progress.close()
    first, second = shown(terminal.getvalue()).splitlines()
    assert first.rstrip() == "mIoU 0.5" and second.startswith("iteration 0/10")


def shown(text: str) -> str:
    """What a terminal shows after ``text``, with tqdm's few control characters."""
    rows, row, column = [""], 0, 0
    position = 0
    while position < len(text):
        if text.startswith("\x1b[A", position):
            row, position = row - 1, position + 3
            continue
        letter, position = text[position], position + 1
        if letter == "\n":
            row, column = row + 1, 0
            rows += [""] * (row == len(rows))
        elif letter == "\r":
            column = 0
        else:
            line = rows[row].ljust(column)
            rows[row], column = line[:column] + letter + line[column + 1 :], column + 1
    return "\n".join(line.rstrip() for line in rows).strip()


def test_a_record_is_escaped_or_lost_where_the_stream_cannot_take_it(tmp_path, capfd):
    log = logging.Logger("test")
    reading, writing = os.pipe()
    os.close(reading)
    with open(tmp_path / "log", "w", encoding="ascii") as stream, open(writing, "w", buffering=1) as closed:
        for handler in (ConsoleHandler(closed), ConsoleHandler(stream)):
            log.addHandler(handler)
        log.warning("größe, %s", "byte\udcff")
        os.dup2(stream.fileno(), closed.fileno())  # so that the lost line can be flushed at the end
    assert (tmp_path / "log").read_text().startswith("gr\\xf6\\xdfe, byte\\udcff\n")
    assert capfd.readouterr().err == ""
