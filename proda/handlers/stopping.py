"""Leaving a run before its end without losing anything: on SIGTERM, on Ctrl-C, or after a given iteration."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

log = logging.getLogger("proda")


class Stopped(SystemExit):
    """The run was asked to stop and has saved: 128 and the number of the signal, or 0 if ``--stop_after`` asked.

    Every process of the run raises it, after the last of them has finished.
    """

    together = True


class StopRequests:
    """Ends training after the iteration at hand, on all processes alike, when any of them is asked to.

    A context around ``trainer.run``; leaving it raises ``Stopped`` if the run was cut short. It ends with
    ``Events.TERMINATE``, at which checkpoints are saved, and without ``Events.COMPLETED``. Signals are heard from the
    first epoch's start on: what comes before it (pseudo labels, prototypes) may be interrupted at any time. A second
    Ctrl-C interrupts at once.

    Args:
        after: iteration of a longer run to stop after; 0 for none.
    """

    def __init__(self, trainer: Engine, *, after: int = 0) -> None:
        self.trainer, self.after = trainer, after
        self.signal = 0  # number of the signal that asked this process
        self.stopped, self.status = False, 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequests":
        # Loader processes start later and inherit the handler, so that Ctrl-C does not end them under the trainer.
        self.trainer.add_event_handler(Events.EPOCH_STARTED, self._listen)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self)
        return self

    def __call__(self, trainer: Engine) -> None:
        asked = int(idist.all_reduce(self.signal, "MAX"))  # not into self.signal: one may come meanwhile
        iteration = trainer.state.iteration
        if asked or iteration == self.after < (trainer.state.max_iters or 0):
            self.status = 128 + asked if asked else 0
            reason = signal.Signals(asked).name if asked else f"--stop_after={self.after}"
            log.info("%s: stopping after iteration %d; --resume goes on from here", reason, iteration)
            self.stopped = True
            trainer.terminate(skip_completed=True)

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.stopped and error is None:
            idist.barrier()  # the first process to end takes the others with it: not before all is saved
            raise Stopped(self.status)

    def _listen(self) -> None:
        if not self._previous and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._hear)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number
