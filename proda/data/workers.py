"""Processes of data loaders: what they do with signals, and when they end."""

import multiprocessing
import os
import signal
import threading

PARENT_CHECK_SECONDS = 5.0  # between two looks of a loader process at whether the training process is there


def leave_signals_to_the_trainer(_: int) -> None:
    """Initialises a loader process: only the training process handles a SIGTERM or SIGINT sent to all processes.

    The training process finishes its iteration, which needs the loaders. It then ends them by its own SIGTERM, the only
    one that they obey. If it is gone, they end themselves. torch's loaders do that only if it dies after they have
    started; otherwise they would wait forever, and whoever reads the output of the run would wait for them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trainer = multiprocessing.parent_process()
    parent = os.getppid() if trainer is None else trainer.pid
    if os.getppid() != parent:
        os._exit(1)
    if not hasattr(signal, "sigtimedwait"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def heed() -> None:
        while os.getppid() == parent:
            caught = signal.sigtimedwait({signal.SIGTERM}, PARENT_CHECK_SECONDS)
            if caught is not None and caught.si_pid == parent:
                break
        os._exit(0)

    threading.Thread(target=heed, daemon=True).start()
