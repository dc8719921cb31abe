"""Shows how far long work has come: a bar on a terminal; elsewhere a plain line every so often.

The bar is tqdm's, on stderr. Where stderr is no terminal, as in the log of a scheduler, lines go to the logger
``proda.progress``, whose records appear on the console and are left out of ``train.log``. The first line comes after 30
seconds, and then one for every 5 % of the work or every 10 minutes, but never two within 30 seconds.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from proda.utils.words import duration

LOGGER = "proda.progress"
LINE_SECONDS, LINE_SHARE, LONGEST_SILENCE = 30.0, 0.05, 600.0
BAR: dict[str, Any] = {
    "bar_format": "{desc} {n_fmt}/{total_fmt} {percentage:3.0f}% |{bar}| {elapsed} elapsed, {remaining} left{postfix}",
    "dynamic_ncols": True,
    "mininterval": 1.0,  # seconds between two drawings; to draw the loss, the program has to wait for a GPU
    "miniters": 1,
}

log = logging.getLogger(LOGGER)
Item = TypeVar("Item")


class Progress:
    """How much of some work is done, from its first ``update`` to ``close``.

    The time left follows from the mean speed since this object was made, so it includes what else takes time, such as
    validations.

    Args:
        title: what is counted, such as ``iteration``.
        total: the number at the end of the work.
        done: the number at the beginning; above 0 for work that is resumed.
        figures: returns a text such as ``loss 0.41``, or an empty one. It is called only when something is shown.
        keep: the bar stays on the terminal when the work has ended; otherwise it vanishes.
    """

    def __init__(
        self, title: str, total: int, *, done: int = 0, figures: Callable[[], str] = str, keep: bool = False
    ) -> None:
        self.title, self.total, self.first, self.done, self.figures = title, total, done, done, figures
        self.started = self.shown_at = time.monotonic()
        self.shown = done
        self.bar: tqdm | None = None
        if sys.stderr.isatty():
            self.bar = tqdm(desc=title, total=total, initial=done, leave=keep, file=sys.stderr, **BAR)

    def update(self, done: int) -> None:
        """Sets the number that is done, and shows it if it is time to."""
        self.done, now = done, time.monotonic()
        if self.bar is not None:
            if self.bar.update(done - self.bar.n):
                self.bar.set_postfix_str(self.figures(), refresh=False)
        elif self._line_due(now):
            log.info("%s", self._line(now))
            self.shown_at, self.shown = now, done

    def close(self) -> None:
        """Ends the bar. It can be called again."""
        if self.bar is not None:
            self.bar.set_postfix_str(self.figures(), refresh=False)
            self.bar.close()
            self.bar = None

    def _line_due(self, now: float) -> bool:
        silence, share = now - self.shown_at, (self.done - self.shown) / max(1, self.total)
        first = self.shown == self.first
        return silence >= LINE_SECONDS and (first or share >= LINE_SHARE or silence >= LONGEST_SILENCE)

    def _line(self, now: float) -> str:
        parts = [f"{self.title} {self.done}/{self.total} ({100 * self.done // max(1, self.total)} %)"]
        if figures := self.figures():
            parts.append(figures)
        if self.done > self.first:
            seconds = (now - self.started) / (self.done - self.first) * (self.total - self.done)
            parts.append(f"{duration(seconds)} left")
        return ", ".join(parts)


class _Tracked(Generic[Item]):
    def __init__(self, items: Iterable[Item], title: str, total: int) -> None:
        self.items, self.title, self.total = items, title, total

    def __iter__(self) -> Iterator[Item]:
        progress = Progress(self.title, self.total)
        try:
            for number, item in enumerate(self.items, 1):
                yield item
                progress.update(number)
        finally:
            progress.close()


def track(items: Iterable[Item], title: str, *, show: bool = True) -> Iterable[Item]:
    """Items that show how many are done while they are iterated over; nothing if not ``show``, or without a length."""
    total = len(items) if show and isinstance(items, Sized) else 0
    return _Tracked(items, title, total) if total else items


class ConsoleHandler(logging.StreamHandler):
    """Writes records to a stream without breaking bars: they are cleared, and drawn again below the record.

    What cannot be encoded is escaped. A stream that cannot be written costs lines, not the run.
    """

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        return super().format(record).encode(encoding, "backslashreplace").decode(encoding)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 the name is that of logging
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
