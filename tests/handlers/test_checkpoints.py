"""Saving checkpoints, and resuming from them."""

import errno
import logging
import struct
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from torch import nn

from proda.engines.events import Trainer
from proda.handlers import checkpoints as module
from proda.handlers.checkpoints import Checkpoints, damage, remove_abandoned
from proda.utils.errors import UserError


@pytest.fixture
def lines(caplog, monkeypatch):
    """The lines of the log."""
    monkeypatch.setattr(module.log, "propagate", True)
    caplog.set_level(logging.INFO, logger="proda")
    return lambda: [record.getMessage() for record in caplog.records]


class Part:
    """A handler that remembers ``content``."""

    def __init__(self, **content: Any) -> None:
        self.content = content

    def state_dict(self) -> dict[str, Any]:
        return dict(self.content)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.content = dict(state)


class Run:
    """An engine that adds 1 to a weight at every iteration, and its checkpoints."""

    def __init__(self, folder, *, every: int = 1, resumed: bool = False, **parts: Any) -> None:
        self.network = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.network.weight)
        self.engine = Trainer(self.step, **{"student": self.network, **parts})
        self.checkpoints = Checkpoints(folder)
        self.checkpoints.attach(self.engine, every=every)
        self.start = self.checkpoints.resume(self.engine) if resumed else 0

    def step(self, *_) -> dict:
        with torch.no_grad():
            self.network.weight.add_(1.0)
        return {}

    def to(self, iterations: int) -> "Run":
        self.checkpoints.check_states(self.engine)
        self.checkpoints.check_folder()
        self.engine.run([None] * 100, max_iters=iterations, epoch_length=100)
        return self

    @property
    def value(self) -> float:
        return self.network.weight.item()


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(folder, iteration: int) -> dict[str, Any]:
    return torch.load(folder / f"checkpoint_{iteration}.pt", weights_only=True)


def edit(path, **changes: Any) -> None:
    """Changes parts of a checkpoint; None removes them."""
    content = torch.load(path, weights_only=True) | changes
    torch.save({name: part for name, part in content.items() if part is not None}, path)


def test_the_newest_two_are_kept_and_the_last_iteration_is_saved(tmp_path):
    Run(tmp_path, every=2).to(7)
    assert names(tmp_path) == ["checkpoint_6.pt", "checkpoint_7.pt"]
    assert damage(tmp_path / "checkpoint_7.pt") == ""
    Run(tmp_path / "short", every=5).to(1)  # fewer iterations than lie between checkpoints
    assert names(tmp_path / "short") == ["checkpoint_1.pt"]


def test_it_saves_before_later_handlers_which_may_be_interrupted(tmp_path):
    run = Run(tmp_path, every=2)

    @run.engine.on(Events.ITERATION_COMPLETED(every=2))
    def validate() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.to(3)
    assert names(tmp_path) == ["checkpoint_2.pt"]
    assert Run(tmp_path, resumed=True).value == 2


def test_the_end_of_training_saves_before_its_last_handlers_and_after_them(tmp_path):
    scores, found = Part(scores=[]), []
    run = Run(tmp_path, every=2, scores=scores)

    @run.engine.on(Events.COMPLETED)
    def validate() -> None:
        found.append(read(tmp_path, 3)["scores"])
        scores.content["scores"].append(0.5)

    run.to(3)
    assert found == [{"scores": []}] and read(tmp_path, 3)["scores"] == {"scores": [0.5]}


def test_a_stopped_run_saves_the_state_after_its_last_handlers(tmp_path):
    scores = Part(scores=[])
    run = Run(tmp_path, every=2, scores=scores)

    @run.engine.on(Events.ITERATION_COMPLETED(once=4))
    def validate_and_stop() -> None:
        scores.content["scores"].append(0.5)
        run.engine.terminate(skip_completed=True)

    run.to(7)
    assert names(tmp_path) == ["checkpoint_2.pt", "checkpoint_4.pt"]
    assert read(tmp_path, 4)["scores"] == {"scores": [0.5]}


def test_a_part_that_is_remembered_after_the_attachment_is_saved(tmp_path):
    run = Run(tmp_path)
    run.engine.state.remembered["late"] = Part(n=3)
    run.to(1)
    assert read(tmp_path, 1)["late"] == {"n": 3} and read(tmp_path, 1)["format"] == {"version": module.VERSION}


def test_a_run_resumes_from_its_newest_checkpoint_and_without_one_from_the_beginning(tmp_path, lines):
    assert Run(tmp_path, resumed=True).start == 0 and "starting from the beginning" in lines()[-1]
    Run(tmp_path).to(3)
    resumed = Run(tmp_path, resumed=True)
    assert resumed.start == 3 and resumed.value == 3 and resumed.engine.state.iteration == 3
    assert lines()[-1] == f"resumed from {tmp_path / 'checkpoint_3.pt'}"
    assert resumed.to(5).value == 5
    assert names(tmp_path) == ["checkpoint_4.pt", "checkpoint_5.pt"]


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


def test_a_failing_write_loses_no_existing_checkpoint(tmp_path, lines, monkeypatch):
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
    assert names(tmp_path) == ["checkpoint_2.pt", "checkpoint_6.pt"]  # the newest two that could be written
    assert Run(tmp_path, resumed=True).value == 6


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({"best": np.float64(0.5)}, "mine.best is a numpy.float64"),
        ({"history": [1.0, np.int64(2)]}, "mine.history.1 is a numpy.int64"),
        ({np.str_("a"): 1}, r"mine: the key .*'a'.* is a numpy.str_"),
        ({"x": np.zeros(2)}, "mine.x is a numpy.ndarray"),
        ({"when": Part()}, r"mine.when is a .*\.Part"),
        ({"call": lambda: 0}, r"mine.call is a builtins.function"),
    ],
)
def test_unreadable_state_is_reported_before_training_or_at_the_save_and_loses_no_checkpoint(tmp_path, content, place):
    run = Run(tmp_path, mine=Part(n=1))
    run.to(2)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    other = Run(tmp_path, mine=Part(), resumed=True)
    other.engine.state.remembered["mine"].content = content
    with pytest.raises(UserError, match=place) as error:
        other.to(3)
    assert "\n" not in str(error.value) and other.value == 2
    other.engine.state.remembered["mine"].content = {"n": 1}
    other.engine.add_event_handler(  # state that becomes unreadable is reported at the save
        Events.ITERATION_STARTED(once=3), lambda: setattr(other.engine.state.remembered["mine"], "content", content)
    )
    with pytest.raises(UserError, match=place):
        other.to(5)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


@pytest.mark.parametrize("spoilt", ["student.weight", "optimizer.state.0.momentum_buffer"])
def test_numbers_of_networks_and_optimizers_that_are_not_finite_are_never_saved(tmp_path, spoilt):
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    other = Part(best=torch.tensor(-torch.inf), worst=torch.nan)  # of a handler they may be
    run = Run(tmp_path, optimizer=optimizer, handler=other).to(2)
    network(torch.full((1, 1), torch.inf)).sum().backward()
    spoil = optimizer.step if spoilt.startswith("optimizer") else lambda: run.network.weight.data.fill_(torch.nan)
    run.engine.add_event_handler(Events.ITERATION_STARTED(once=4), lambda: spoil())
    with pytest.raises(FloatingPointError, match=rf"{spoilt} is not finite, so .*checkpoint_4.pt is not saved"):
        run.to(6)
    assert names(tmp_path) == ["checkpoint_2.pt", "checkpoint_3.pt"]
    resumed = Run(tmp_path, optimizer=torch.optim.SGD(nn.Linear(1, 1).parameters()), handler=Part(), resumed=True)
    assert resumed.value == 3 and resumed.engine.state.remembered["handler"].content["best"] == -torch.inf


@pytest.mark.parametrize("content", [torch.Size([2]), torch.float16, torch.device("cpu"), (1, [None, b"x"]), {1: True}])
def test_what_torch_reads_back_may_be_remembered(tmp_path, content):
    Run(tmp_path, mine=Part(content=content)).to(1)
    assert Run(tmp_path, mine=Part(), resumed=True).engine.state.remembered["mine"].content == {"content": content}


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("when", ["opened", "read", "loaded"])
def test_a_disk_error_ends_the_run_and_does_not_count_as_damage(tmp_path, monkeypatch, number, when):
    Run(tmp_path).to(3)

    def fail(*_, **__):
        raise OSError(number, "passing trouble")

    target = {"opened": "builtins.open", "read": "zipfile.ZipExtFile.read", "loaded": "torch.load"}[when]
    with monkeypatch.context() as patch, pytest.raises(OSError, match="passing trouble"):
        patch.setattr(target, fail)
        Run(tmp_path, resumed=True)
    assert names(tmp_path) == ["checkpoint_2.pt", "checkpoint_3.pt"] and Run(tmp_path, resumed=True).start == 3


@pytest.mark.parametrize("aside", [False, True])
def test_a_run_never_starts_over_if_its_checkpoints_cannot_be_read(tmp_path, aside):
    Run(tmp_path).to(3)
    for path in list(tmp_path.iterdir()):
        path.write_bytes(path.read_bytes()[:-100])
        if aside:  # as left by an earlier version
            path.rename(f"{path}.damaged")
    before = names(tmp_path)
    for _ in range(2):
        with pytest.raises(UserError, match=r"checkpoint_\d\.pt.*: damaged.*no other checkpoint.*--overwrite") as error:
            Run(tmp_path, resumed=True)
        assert "\n" not in str(error.value) and names(tmp_path) == before


def test_of_several_damaged_checkpoints_the_newest_is_named_with_its_own_damage(tmp_path):
    Run(tmp_path).to(3)
    torch.save({"student": print}, tmp_path / "checkpoint_2.pt")
    newest = tmp_path / "checkpoint_3.pt"
    newest.write_bytes(b"")
    (tmp_path / "checkpoint_1.pt.damaged").write_bytes(b"")
    with pytest.raises(UserError) as error:
        Run(tmp_path, resumed=True)
    assert str(error.value).startswith(f"{newest}: damaged ({damage(newest)}), ")
    assert damage(newest) != damage(tmp_path / "checkpoint_2.pt")


@pytest.mark.parametrize(
    "name",
    [
        *("checkpoint_2_keep.pt", "checkpoint_9_best.pt", "checkpoint_x.pt", "checkpoint_09.pt", "checkpoint_9.pt.bak"),
        *("checkpoint_-9.pt", "checkpoint_٩.pt", "my_checkpoint_9.pt", "checkpoint_.pt"),
    ],
)
def test_a_users_file_is_not_taken_for_a_checkpoint_and_stays(tmp_path, name):
    (tmp_path / name).write_text("mine")
    Run(tmp_path, resumed=True).to(2)
    resumed = Run(tmp_path, resumed=True).to(5)
    assert resumed.start == 2 and resumed.value == 5
    assert names(tmp_path) == sorted(["checkpoint_4.pt", "checkpoint_5.pt", name])
    assert (tmp_path / name).read_text() == "mine"


def test_a_folder_with_checkpoints_of_another_run_is_refused(tmp_path):
    Run(tmp_path).to(9)
    with pytest.raises(UserError, match=r"holds checkpoint_9.pt of another run: .*--resume.*--overwrite"):
        Run(tmp_path).to(1)
    assert names(tmp_path) == ["checkpoint_8.pt", "checkpoint_9.pt"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        *(({"parts": part}, "not a checkpoint of this command .*another --output") for part in (
            {"student": nn.Linear(2, 1, bias=False)}, {"teacher": nn.Linear(1, 1)}, {"student": nn.PReLU()}
        )),
        *(({"whole": content}, "not a checkpoint of this command") for content in (
            [], {"trainer": 3}, {"student": {}}, torch.zeros(2)
        )),
        # The state of its schedules is in another place, so the learning rate would start again from the top.
        ({"format": None}, "written by an older version of proda .* with the version"),
        ({"format": {"version": module.VERSION + 1}}, "written by a newer version of proda"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_run_or_version_is_one_line(tmp_path, other, said):
    Run(tmp_path).to(1)
    path = tmp_path / "checkpoint_1.pt"
    if "whole" in other:
        torch.save(other["whole"], path)
    elif "format" in other:
        edit(path, **other)
    with pytest.raises(UserError, match=rf"checkpoint_1.pt: {said}") as error:
        Run(tmp_path, **other.get("parts", {}), resumed=True)
    assert "\n" not in str(error.value) and names(tmp_path) == ["checkpoint_1.pt"]


def test_a_part_and_a_field_that_the_file_does_not_know_take_their_defaults(tmp_path, lines):
    Run(tmp_path, handler=Part(a=1), old=Part(b=2)).to(1)
    resumed = Run(tmp_path, handler=Part(a=0, c=[7]), new=Part(d=8))
    resumed.engine.state.alpha = 0.5
    resumed.engine.state_dict_user_keys.append("alpha")
    assert resumed.checkpoints.resume(resumed.engine) == 1 and resumed.value == 1 and resumed.engine.state.alpha == 0.5
    assert resumed.engine.state.remembered["handler"].content == {"a": 1, "c": [7]}
    assert resumed.engine.state.remembered["new"].content == {"d": 8}
    path = tmp_path / "checkpoint_1.pt"
    assert sorted(lines()[:-1]) == [
        f"{path} has no new: it starts from its initial state",
        f"{path} holds old, which this run does not use: ignored",
        f"{path}: handler has no c: initial value kept",
        f"{path}: trainer has no alpha: initial value kept",
    ]


# Models of iterations that the resumed run repeats


def test_models_that_were_kept_after_the_checkpoint_are_deleted_and_named(tmp_path, lines):
    Run(tmp_path).to(3)
    kept = {"best.pt": 4, "label_free.pt": 3, "last.pt": 5}
    for name, iteration in kept.items():
        torch.save({"model": {"w": torch.zeros(2)}, "iteration": iteration}, tmp_path / name)
    Run(tmp_path, resumed=True)
    assert [name for name in names(tmp_path) if name in kept] == ["label_free.pt"]
    assert [line for line in lines() if "deleted" in line] == [
        f"{tmp_path / 'best.pt'} is of iteration 4, after the checkpoint to resume from: deleted",
        f"{tmp_path / 'last.pt'} is of iteration 5, after the checkpoint to resume from: deleted",
    ]


@pytest.mark.parametrize("content", [{"model": {}}, {"model": {}, "iteration": "9"}, [1], None])
def test_a_model_that_does_not_say_of_which_iteration_it_is_stays(tmp_path, content):
    path = tmp_path / "best.pt"
    torch.save(content, path) if content is not None else path.write_text("no model at all")
    remove_abandoned(tmp_path, 1)
    assert path.exists()
