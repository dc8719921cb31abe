"""Stopping a run early."""

import os
import signal
from datetime import timedelta

import ignite.distributed as idist
import pytest
import torch.multiprocessing
from ignite.engine import Engine, Events

from proda.handlers.stopping import Stopped, StopRequests


def ask(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


class Training:
    """A trainer that validates every second iteration; records iterations and validation batches."""

    def __init__(self, *, batches: int = 5) -> None:
        self.trainer, self.evaluator = Engine(lambda *_: None), Engine(lambda *_: None)
        self.events: list[str] = []
        self.validated: list[tuple[int, bool]] = []  # batches, and whether it was finished
        self.stop = StopRequests(self.trainer)
        self.stop.attach_to(self.evaluator)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED(every=2), self.validate, batches)
        self.trainer.add_event_handler(Events.COMPLETED, self.validate, batches)
        for event in (Events.TERMINATE, Events.COMPLETED):
            self.trainer.add_event_handler(event, lambda _, name=event.name: self.events.append(name))

    def validate(self, trainer: Engine, batches: int) -> None:
        self.evaluator.run(range(batches))
        self.validated.append((self.evaluator.state.iteration, not self.evaluator.should_terminate))

    def run(self, iterations: int = 10) -> "Training":
        with self.stop:
            self.trainer.run(range(4), max_iters=iterations)
        return self


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_validation_within_a_batch(number):
    training = Training()
    training.evaluator.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: ask(number))
    with pytest.raises(Stopped) as end:
        training.run()
    assert end.value.code == 128 + number
    assert training.validated == [(3, False)] and training.trainer.state.iteration == 2
    assert training.events == ["TERMINATE"]


def test_a_signal_in_the_last_validation_stops_the_run_too():
    training = Training()

    @training.trainer.on(Events.ITERATION_COMPLETED(once=3))
    def ask_in_the_last() -> None:
        training.evaluator.add_event_handler(Events.ITERATION_STARTED(once=2), lambda: ask())

    with pytest.raises(Stopped) as end:
        training.run(3)
    assert end.value.code == 143 and training.validated == [(5, True), (2, False)]


def test_a_validation_without_a_length_runs_to_its_end():
    training = Training()
    evaluator = training.evaluator

    @training.trainer.on(Events.ITERATION_COMPLETED(once=1))
    def validate() -> None:
        ask()
        evaluator.run(iter(range(6)))

    with pytest.raises(Stopped):
        training.run()
    assert evaluator.state.iteration == 6 and training.trainer.state.iteration == 1


EVENTS = {
    Events.STARTED: 1,
    Events.EPOCH_STARTED: 1,
    Events.ITERATION_STARTED(once=3): 3,
    Events.ITERATION_COMPLETED(once=3): 3,
    Events.EPOCH_COMPLETED(once=2): 8,
}


@pytest.mark.parametrize(("event", "ends"), EVENTS.items())
@pytest.mark.parametrize("skip", [False, True])
def test_a_handler_that_terminates_ends_the_run_with_the_iteration(event, ends, skip):
    training = Training()
    training.trainer.add_event_handler(event, lambda: training.trainer.terminate(skip_completed=skip))
    training.run()
    assert training.trainer.terminate == Engine.terminate.__get__(training.trainer)  # as before the run
    assert training.trainer.state.iteration == ends
    assert training.events == ["TERMINATE"] + ["COMPLETED"] * (not skip)


@pytest.mark.parametrize("skip", [False, True])
def test_a_handler_that_terminates_an_epoch_ends_it_with_the_iteration(skip):
    training, ended = Training(), []
    for event in (Events.EPOCH_STARTED, Events.EPOCH_COMPLETED):
        training.trainer.add_event_handler(event, lambda t, name=event.name: ended.append((name, t.state.iteration)))
    training.trainer.add_event_handler(
        Events.ITERATION_STARTED(once=3), lambda: training.trainer.terminate_epoch(skip_epoch_completed=skip)
    )
    training.run(7)
    assert ended[: 3 - skip] == [("EPOCH_STARTED", 0), *[("EPOCH_COMPLETED", 3)] * (not skip), ("EPOCH_STARTED", 3)]
    assert training.trainer.state.iteration == 7
    assert training.trainer.terminate_epoch == Engine.terminate_epoch.__get__(training.trainer)


INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.mark.parametrize(
    ("signals", "status"),
    [((INT, TERM), 143), ((TERM, INT), 130), ((TERM, TERM), 143), ((INT, INT), None), ((INT, TERM, INT), None)],
)
def test_several_signals_let_the_iteration_end_but_a_second_ctrl_c_interrupts_at_once(signals, status):
    """The launcher sends SIGTERM after each Ctrl-C, too. The later signal gives the status."""
    training = Training()
    training.trainer.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: [ask(number) for number in signals])
    with pytest.raises(Stopped if status else KeyboardInterrupt) as end:
        training.run()
    assert training.trainer.state.iteration == 3 and training.events == ["TERMINATE"] * bool(status)
    assert not status or end.value.code == status


def test_processes_with_nccl_agree_without_their_gpus_and_wait_as_long_as_for_anything_else(monkeypatch):
    made = []
    monkeypatch.setattr("proda.handlers.stopping.dist.is_initialized", lambda: True)
    monkeypatch.setattr("proda.handlers.stopping.dist.get_backend", lambda: "nccl")
    monkeypatch.setattr("proda.handlers.stopping.dist.new_group", lambda **settings: made.append(settings))
    StopRequests(Engine(lambda *_: None), timeout=timedelta(hours=1))
    assert made == [{"backend": "gloo", "timeout": timedelta(hours=1)}]


def _many(rank: int, folder: str, case: str) -> None:
    torch.set_num_threads(1)
    idist.initialize("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    training = Training(batches=5 if rank else 6)  # shares differ by one batch
    if case == "validation":
        training.evaluator.add_event_handler(Events.ITERATION_STARTED(once=3), lambda: ask() if rank else None)
    elif case == "batch that one process alone has":
        training.evaluator.add_event_handler(Events.ITERATION_STARTED(once=6), lambda: ask())
    elif case == "terminate":
        training.trainer.add_event_handler(
            Events.ITERATION_STARTED(once=3), lambda: training.trainer.terminate() if rank else None
        )
    elif case == "terminate the epoch":
        training.trainer.add_event_handler(
            Events.ITERATION_STARTED(once=3), lambda: training.trainer.terminate_epoch() if rank else None
        )
        training.trainer.add_event_handler(Events.EPOCH_STARTED, lambda: idist.barrier())
    training.trainer.add_event_handler(Events.ITERATION_STARTED, lambda: idist.all_reduce(1))  # as gradients are
    code = None
    try:
        training.run(7)
    except Stopped as end:
        code = end.code
    with open(f"{folder}/{rank}", "w") as file:
        epochs = f" {training.trainer.state.epoch}" if case == "terminate the epoch" else ""
        file.write(f"{training.trainer.state.iteration} {training.validated} {code}{epochs}")
    idist.finalize()


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("validation", ["2 [(3, False)] 143"] * 2),
        ("batch that one process alone has", ["2 [(6, True)] 143", "2 [(5, True)] 143"]),
        ("terminate", ["3 [(6, True), (6, True)] None", "3 [(5, True), (5, True)] None"]),
        ("terminate the epoch", [f"7 {[(n, True)] * 4} None 2" for n in (6, 5)]),
    ],
)
def test_two_processes_stop_at_the_same_point(tmp_path, case, expected):
    torch.multiprocessing.spawn(_many, (str(tmp_path), case), nprocs=2)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == expected


def test_signals_have_their_own_handlers_again_after_a_run():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    during = []
    training = Training()
    training.trainer.add_event_handler(
        Events.ITERATION_STARTED(once=1), lambda: during.extend(map(signal.getsignal, before))
    )
    training.run(1)
    assert {number: signal.getsignal(number) for number in before} == before
    assert not set(during) & set(before.values())
    assert Training().run(4).validated == [(5, True)] * 3  # without a signal validations are whole
