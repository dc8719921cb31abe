"""Keeping what a run needs to go on, and going on."""

import errno
import logging
import struct

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from proda.handlers import checkpoints as module
from proda.handlers.checkpoints import checkpoints, damage, resume


@pytest.fixture
def lines(caplog, monkeypatch):
    """What the program logs."""
    monkeypatch.setattr(module.log, "propagate", True)
    caplog.set_level(logging.INFO, logger="proda")
    return lambda: [record.getMessage() for record in caplog.records]


class Run:
    """An engine that adds 1 to a weight at every iteration, and its checkpoints."""

    def __init__(self, folder, *, every: int = 1, resumed: bool = False) -> None:
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.network.weight)
        self.engine = Engine(self.step)
        self.state = {"trainer": self.engine, "student": self.network}
        self.start = resume(self.state, folder) if resumed else 0
        checkpoints(self.state, folder, self.engine, every=every)

    def step(self, *_) -> None:
        with torch.no_grad():
            self.network.weight.add_(1.0)

    def to(self, iterations: int) -> "Run":
        self.engine.run([None] * 100, max_iters=iterations, epoch_length=100)
        return self

    @property
    def value(self) -> float:
        return self.network.weight.item()


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_two_are_kept_and_the_last_iteration_is_saved(tmp_path):
    Run(tmp_path, every=2).to(7)
    assert names(tmp_path) == ["checkpoint_6.pt", "checkpoint_7.pt"]


def test_what_handlers_of_the_iteration_have_moved_is_in_it(tmp_path):
    run = Run.__new__(Run)
    run.network = nn.Linear(1, 1, bias=False)
    engine = Engine(lambda *_: None)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: run.network.weight.data.fill_(7.0))
    checkpoints({"trainer": engine, "student": run.network}, tmp_path, engine, every=1)
    engine.run([None])
    assert torch.load(tmp_path / "checkpoint_1.pt", weights_only=True)["student"]["weight"].item() == 7


def test_a_run_goes_on_from_its_newest_checkpoint(tmp_path, lines):
    Run(tmp_path).to(3)
    resumed = Run(tmp_path, resumed=True)
    assert resumed.start == 3 and resumed.value == 3 and resumed.engine.state.iteration == 3
    assert lines()[-1] == f"resumed from {tmp_path / 'checkpoint_3.pt'}"
    assert resumed.to(5).value == 5
    assert names(tmp_path) == ["checkpoint_4.pt", "checkpoint_5.pt"]


def test_without_a_checkpoint_it_starts_from_the_beginning_and_says_so(tmp_path, lines):
    assert Run(tmp_path, resumed=True).start == 0
    assert "starting from the beginning" in lines()[-1]


@pytest.mark.parametrize("how", ["truncated", "altered", "empty", "code"])
def test_a_damaged_checkpoint_is_named_in_the_log_and_the_one_before_it_used(tmp_path, lines, how):
    Run(tmp_path).to(3)
    newest = tmp_path / "checkpoint_3.pt"
    data = bytearray(newest.read_bytes())
    if how == "altered":
        data[data.index(struct.pack("<f", 3.0))] ^= 0xFF  # a bit of the weight
    elif how == "code":
        torch.save({"student": print}, newest)
        data = newest.read_bytes()
    newest.write_bytes({"truncated": data[: len(data) // 2], "empty": b""}.get(how, data))
    resumed = Run(tmp_path, resumed=True)
    assert resumed.start == 2 and resumed.value == 2
    warning = next(line for line in lines() if "cannot be used" in line)
    assert str(newest) in warning and "\n" not in warning
    assert resumed.to(4).value == 4
    assert [name for name in names(tmp_path) if name.endswith(".pt")] == ["checkpoint_3.pt", "checkpoint_4.pt"]


def test_a_whole_file_is_not_damaged(tmp_path):
    Run(tmp_path).to(1)
    assert damage(tmp_path / "checkpoint_1.pt") == ""


def test_a_failing_writer_costs_no_checkpoint_however_often_it_fails(tmp_path, lines, monkeypatch):
    run = Run(tmp_path).to(2)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    save = torch.save

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    run.to(5)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    assert "checkpoint_3.pt" in lines()[0] and "No space left on device" in lines()[0]
    monkeypatch.setattr(torch, "save", save)
    run.to(6)
    assert names(tmp_path) == ["checkpoint_2.pt", "checkpoint_6.pt"]  # the newest two that there are
    assert Run(tmp_path, resumed=True).value == 6


def test_numbers_that_are_not_finite_are_never_saved(tmp_path):
    run = Run(tmp_path).to(2)
    run.engine.add_event_handler(Events.ITERATION_STARTED(once=4), lambda: run.network.weight.data.fill_(torch.nan))
    with pytest.raises(FloatingPointError, match=r"student.weight is not finite, so .*checkpoint_4.pt is not saved"):
        run.to(6)
    assert names(tmp_path) == ["checkpoint_2.pt", "checkpoint_3.pt"]
    assert Run(tmp_path, resumed=True).value == 3


def test_a_new_run_in_the_folder_of_a_longer_one_keeps_its_own_checkpoints(tmp_path, lines):
    Run(tmp_path).to(9)
    again = Run(tmp_path)
    assert "checkpoints of an earlier run" in lines()[-1]
    assert names(tmp_path) == ["checkpoint_8.pt", "checkpoint_9.pt"]  # until there is one to go on from
    again.to(1)
    assert names(tmp_path) == ["checkpoint_1.pt"]
    again.to(3)
    assert names(tmp_path) == ["checkpoint_2.pt", "checkpoint_3.pt"]


@pytest.mark.parametrize("other", [{"student": nn.Linear(2, 1, bias=False)}, {"teacher": nn.Linear(1, 1)}])
def test_a_checkpoint_of_another_network_or_stage_is_one_line(tmp_path, other):
    Run(tmp_path).to(1)
    with pytest.raises(ValueError, match=r"checkpoint_1.pt: not a checkpoint of this command .*another --output") as e:
        resume({"trainer": Engine(lambda *_: None), **other}, tmp_path)
    assert "\n" not in str(e.value)
