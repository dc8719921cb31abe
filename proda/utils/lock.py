"""A lock file that lets one command at a time use a folder. It names its owner; stale locks are taken over.

A lease of filelock would not do: it counts a killed process that nobody has waited for as alive, and a process of
another machine with the same host name as dead. ``flock`` does not reach other machines on every shared file system.
"""

import atexit
import contextlib
import fcntl
import json
import logging
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ignite.distributed as idist

from proda.utils.errors import UserError

log = logging.getLogger("proda")

HEARTBEAT = 10.0  # seconds between two updates of the lock file by its owner
PATIENCE = 60.0  # seconds without an update after which an owner on another machine counts as dead


class FolderLock:
    """Holds ``folder/.lock`` for all processes of a run. Use it as a context, or call ``acquire`` and ``release``.

    Rank 0 holds the lock; every process of the group must call ``acquire``. The file is JSON with host, process id,
    command and start time. The lock of a killed process is taken over: at once on the same machine, otherwise after a
    minute in which the owner has not updated the file. A process may acquire a lock that it already holds. The class is
    not thread-safe.

    Raises:
        UserError: another command holds the folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / ".lock"
        self._released: threading.Event | None = None  # None: not held

    def acquire(self) -> "FolderLock":
        if idist.get_rank() == 0 and self._released is None:
            self._take()
        idist.barrier()
        return self

    def release(self) -> None:
        """Releases the folder; does nothing if this process does not hold the lock."""
        if self._released is None:
            return
        self._released.set()
        self._released = None
        atexit.unregister(self.release)
        # A forked loader process inherits this object, and a suspended owner may have lost the lock to another host.
        if _is_me(_parsed(self._read()[0])):
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> "FolderLock":
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _take(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._create():
            seen = text, updated = self._read()
            owner = _parsed(text)
            if not updated:
                continue  # released in the meantime
            if _is_me(owner):
                break
            alive = _is_alive(owner)
            if alive is None:
                message = "waiting up to %.0f s to see whether %s still uses %s"
                log.warning(message, PATIENCE, _described(owner), self.path.parent)
                alive = self._is_updated_after(updated)
            if alive:
                owner = _parsed(self._read()[0])  # again: the first reading may have come before the owner's writing
                raise UserError(
                    f"{self.path.parent} is in use by {_described(owner)}: wait until it has ended, or use another "
                    f"folder; if it has ended, delete {self.path}"
                )
            log.warning("%s: taking over the lock of %s, which has ended", self.path, _described(owner))
            self._delete_stale(seen)
        self._released = threading.Event()
        threading.Thread(target=_keep_updated, args=(self.path, self._released), daemon=True).start()
        atexit.register(self.release)

    def _create(self) -> bool:
        """Creates the lock file; False if there is one."""
        try:
            with open(self.path, "x") as file:
                json.dump(_identity() | {"command": sys.argv, "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}, file)
        except FileExistsError:
            return False
        return True

    def _read(self) -> tuple[str, int]:
        """The content of the lock file and the time of its last update; an empty text and 0 if there is no file."""
        try:
            with open(self.path, errors="replace") as file:  # open() refreshes attributes on NFS, stat() may not
                return file.read(), os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return "", 0

    def _is_updated_after(self, first: int) -> bool:
        """Whether an owner on another machine updates the lock file; waits up to ``PATIENCE`` seconds."""
        deadline = time.monotonic() + PATIENCE
        while (updated := self._read()[1]) == first and time.monotonic() < deadline:
            time.sleep(min(1.0, PATIENCE / 10))
        return updated not in (first, 0)

    def _delete_stale(self, seen: tuple[str, int]) -> None:
        """Deletes a stale lock, unless another command that saw the same lock has already taken it over."""
        with contextlib.suppress(FileNotFoundError), open(self.path) as file:
            with contextlib.suppress(OSError):  # a file system without flock
                fcntl.flock(file, fcntl.LOCK_EX)
            if self._read() == seen:
                self.path.unlink()


def _keep_updated(path: Path, released: threading.Event) -> None:
    while not released.wait(HEARTBEAT):
        with contextlib.suppress(OSError):  # the next update may succeed
            os.utime(path)


def _identity() -> dict[str, Any]:
    """Identifies a process uniquely. It includes the PID namespace: containers may share host names and process ids."""
    try:
        machine = f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        machine = ""
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": machine, "pid": pid, "started": start_time(pid)}


def start_time(pid: int) -> str | None:
    """Start time of a process in clock ticks of the kernel; None if the process or /proc does not exist."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state[0] in "ZX" else state[19]


def _is_me(owner: dict[str, Any]) -> bool:
    return owner | _identity() == owner


def _is_alive(owner: dict[str, Any]) -> bool | None:
    """Whether the owner is running; None if this machine cannot know."""
    me = _identity()
    if not me["started"] or (owner.get("host"), owner.get("machine")) != (me["host"], me["machine"]):
        return None
    return start_time(owner["pid"]) == owner["started"]


def _described(owner: dict[str, Any]) -> str:
    if not owner:
        return "an unknown command"
    command = " ".join(owner.get("command", ["a command"]))
    return f"`{command}` (process {owner.get('pid')} on {owner.get('host')}, since {owner.get('since')})"


def _parsed(text: str) -> dict[str, Any]:
    """The owner in the text of a lock file; empty if the text is invalid."""
    try:
        return dict(json.loads(text))
    except (TypeError, ValueError):
        return {}
