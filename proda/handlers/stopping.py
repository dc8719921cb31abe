"""Stops a run early without losing progress: on SIGTERM or on Ctrl-C."""

import logging
import signal
import threading
from datetime import timedelta
from types import FrameType
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

log = logging.getLogger("proda")

# A process waits this long for the others. Some work is done by one of them alone, such as listing images, and on slow
# disks it takes longer than the ten minutes that NCCL allows. Launchers notice within seconds if a process ends.
TIMEOUT = timedelta(hours=1)


class Stopped(SystemExit):
    """The run was stopped by a signal and has saved a checkpoint; raised on every process after all have finished.

    The exit status is 128 plus the number of the signal.
    """

    together = True


class StopRequests:
    """Ends training on all processes after the current iteration, if any process is asked to stop.

    A context manager around ``trainer.run``, which raises ``Stopped`` on exit from a run that a signal stopped. Such a
    run ends with ``Events.TERMINATE``, at which the checkpoint is saved, and without ``Events.COMPLETED``. Work before
    the first epoch (pseudo labels, prototypes) may be interrupted at any time; a second Ctrl-C interrupts immediately.
    If a handler on any process calls ``trainer.terminate()`` (as Ignite's ``TimeLimit`` and ``EarlyStopping`` do), all
    processes end with the current iteration or epoch; ``terminate_epoch()`` likewise ends the epoch on all of them.

    Args:
        timeout: how long a process waits for the others at the end of an iteration; None: as long as torch does.
    """

    def __init__(self, trainer: Engine, *, timeout: timedelta | None = None) -> None:
        self.trainer = trainer
        self.signal = 0  # number of the signal that this process received
        self.interrupted = False  # by Ctrl-C; the launcher then sends SIGTERM as well
        self.ending = 0  # request of a handler here: 1 terminate(), 2 terminate(skip_completed=True)
        self.ending_epoch = 0  # the same of terminate_epoch() in this iteration, 2 with skip_epoch_completed=True
        self.status = 0  # the exit status of a run that is stopped
        self._previous: dict[int, Any] = {}
        # The processes agree in every iteration. Over NCCL they would wait for their GPUs to do so.
        nccl = dist.is_initialized() and dist.get_backend() == "nccl"
        self._group: Any = dist.new_group(backend="gloo", timeout=timeout) if nccl else None

    def attach_to(self, evaluator: Engine) -> None:
        """Lets a signal end a run of ``evaluator`` after the current batch, the same one on all processes.

        Metrics are then not computed, and ``evaluator.should_terminate`` is set. Signals have an effect up to the last
        batch that all processes have; an evaluator whose data has no length always runs to its end.
        """
        common = 0

        def count(evaluator: Engine) -> None:
            nonlocal common
            common = int(idist.all_reduce(evaluator.state.epoch_length or 0, "MIN"))

        def answer(evaluator: Engine) -> None:
            if evaluator.state.iteration <= common:
                asked = self._all_reduce_max(self.signal)
                if asked:
                    self._stop(asked, f"in the validation after iteration {self.trainer.state.iteration}")
                    evaluator.terminate(skip_completed=True)

        evaluator.add_event_handler(Events.STARTED, count)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, answer)

    def __enter__(self) -> "StopRequests":
        # Loader processes start later and inherit the signal handler, so Ctrl-C does not kill them during training.
        self.trainer.add_event_handler(Events.EPOCH_STARTED, self._install_handlers)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self._agree)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self._agree)
        self._terminate, self._terminate_epoch = self.trainer.terminate, self.trainer.terminate_epoch
        self.trainer.terminate, self.trainer.terminate_epoch = self._ask_to_end, self._ask_to_end_epoch
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        del self.trainer.terminate, self.trainer.terminate_epoch  # restores the methods of the class
        if self.status and error is None:
            idist.barrier()  # the launcher ends all processes when the first exits, so wait until all have saved
            raise Stopped(self.status)

    def _agree(self, trainer: Engine) -> None:
        """Exchanges all requests at once. A signal takes precedence over the run's end, and that over an epoch's."""
        asked, request = divmod(self._all_reduce_max(16 * self.signal + 4 * self.ending + self.ending_epoch), 16)
        ending, ending_epoch = divmod(request, 4)
        if asked and not self.status:  # self.signal stays: a signal may arrive meanwhile
            self._stop(asked, f"after iteration {trainer.state.iteration}")
        if asked or ending:
            self._terminate(skip_completed=bool(asked) or ending == 2)
        elif ending_epoch and trainer.last_event_name == Events.ITERATION_COMPLETED:  # otherwise the epoch has ended
            self._terminate_epoch(skip_epoch_completed=ending_epoch == 2)
        self.ending_epoch = 0

    def _all_reduce_max(self, value: int) -> int:
        """The highest value of all processes."""
        if not dist.is_initialized():
            return value
        highest = torch.tensor(value)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=self._group)
        return int(highest)

    def _stop(self, asked: int, where: str) -> None:
        self.status, name = 128 + asked, signal.Signals(asked).name
        log.info("%s: stopping %s; continue with --resume, a pipeline by the same command", name, where)

    def _ask_to_end(self, skip_completed: bool = False) -> None:
        self.ending = max(self.ending, 2 if skip_completed else 1)

    def _ask_to_end_epoch(self, skip_epoch_completed: bool = False) -> None:
        self.ending_epoch = max(self.ending_epoch, 2 if skip_epoch_completed else 1)

    def _install_handlers(self) -> None:
        if not self._previous and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal, self.interrupted = number, self.interrupted or number == signal.SIGINT
