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

    ``trainer.terminate()`` of a handler on any of the processes (Ignite's ``TimeLimit``, ``EarlyStopping``) ends all of
    them, too: at the end of the iteration or epoch at hand, from whatever event it is called.

    Args:
        after: iteration of a longer run to stop after; 0 for none.
    """

    def __init__(self, trainer: Engine, *, after: int = 0) -> None:
        self.trainer, self.after = trainer, after
        self.signal = 0  # number of the signal that asked this process
        self.ending = 0  # what a handler of this process asked for: 1 terminate(), 2 terminate(skip_completed=True)
        self.stopped, self.status = False, 0
        self._previous: dict[int, Any] = {}

    def attach_to(self, evaluator: Engine) -> None:
        """Lets a signal end a run of ``evaluator`` after the batch at hand, on all processes after the same one.

        Its ``Events.COMPLETED`` and ``Events.EPOCH_COMPLETED`` do not fire then, so metrics are not computed;
        ``evaluator.should_terminate`` tells whoever has started it that it is unfinished. Where the processes' numbers
        of batches differ, a signal is answered up to the last batch that all of them have. An evaluator of data without
        a length runs to its end.
        """
        common = 0

        def count(evaluator: Engine) -> None:
            nonlocal common
            common = int(idist.all_reduce(evaluator.state.epoch_length or 0, "MIN"))

        def answer(evaluator: Engine) -> None:
            if evaluator.state.iteration <= common:
                asked = int(idist.all_reduce(self.signal, "MAX"))
                if asked:
                    self._stop(asked, f"in the validation after iteration {self.trainer.state.iteration}")
                    evaluator.terminate(skip_completed=True)

        evaluator.add_event_handler(Events.STARTED, count)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, answer)

    def __enter__(self) -> "StopRequests":
        # Loader processes start later and inherit the handler, so that Ctrl-C does not end them under the trainer.
        self.trainer.add_event_handler(Events.EPOCH_STARTED, self._listen)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self._agree)
        self._terminate = self.trainer.terminate
        self.trainer.terminate = self._ask_to_end
        return self

    def __call__(self, trainer: Engine) -> None:
        self._agree(trainer)
        iteration = trainer.state.iteration
        if not self.stopped and iteration == self.after < (trainer.state.max_iters or 0):
            self._stop(0, f"after iteration {iteration}")
            self._terminate(skip_completed=True)

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        del self.trainer.terminate  # the method of its class shows again
        if self.stopped and error is None:
            idist.barrier()  # the first process to end takes the others with it: not before all is saved
            raise Stopped(self.status)

    def _agree(self, trainer: Engine) -> None:
        """One exchange for both requests: that of the highest signal, else the most that a handler asked for."""
        asked, ending = divmod(int(idist.all_reduce(4 * self.signal + self.ending, "MAX")), 4)
        if asked and not self.stopped:  # not into self.signal: one may come meanwhile
            self._stop(asked, f"after iteration {trainer.state.iteration}")
        if asked or ending:
            self._terminate(skip_completed=bool(asked) or ending == 2)

    def _stop(self, asked: int, where: str) -> None:
        self.stopped, self.status = True, 128 + asked if asked else 0
        reason = signal.Signals(asked).name if asked else f"--stop_after={self.after}"
        log.info("%s: stopping %s; --resume goes on from here", reason, where)

    def _ask_to_end(self, skip_completed: bool = False) -> None:
        self.ending = max(self.ending, 2 if skip_completed else 1)

    def _listen(self) -> None:
        if not self._previous and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._hear)

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number
