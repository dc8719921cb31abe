"""Standard output and error of a command whose reader may go away, or may not know every character.

``python run.py ... | head`` closes the pipe, a terminal hangs up, a log may be ASCII. None of that may stop a run that
takes days, or hide its result behind an error about printing.
"""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_NO_READER = (errno.EPIPE, errno.ECONNRESET, errno.EIO)  # of a pipe, a socket and a terminal


class _Lasting(io.FileIO):
    """A file descriptor to write to; what nobody can read any more is lost without an error."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _NO_READER:
                raise
            return len(data)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Within the block ``sys.stdout`` and ``sys.stderr`` outlive their reader, and escape what they cannot encode.

    Escapes are those of Python, such as ``\\xfc``. A stream that was closed before the program began takes everything
    and keeps nothing. Streams that something else has replaced, such as those of a notebook, stay as they are.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _lasting(sys.stdout, sys.__stdout__), _lasting(sys.stderr, sys.__stderr__)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # a full disk; a stream that somebody closed
                stream.flush()
        sys.stdout, sys.stderr = before


def _lasting(stream: TextIO | None, original: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", errors="backslashreplace")
    if stream is not original or not isinstance(stream, io.TextIOWrapper):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    raw: Any = _Lasting(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),  # python -u writes through
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
