"""A lock file that lets one command at a time use a folder. It names its owner; stale locks are taken over."""

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
import uuid
from pathlib import Path
from types import TracebackType
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
        if idist.get_rank() == 0:
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
        if _is_me(_parsed(self._text())):
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> "FolderLock":
        return self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.release()

    def _take(self) -> None:
        if self._released is not None:
            return  # this process holds it already
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._create():
            text = self._text()
            owner = _parsed(text)
            if text is None:
                continue  # released in the meantime
            if _is_me(owner):
                break
            if _is_alive(owner) or (_is_alive(owner) is None and self._is_renewed(owner)):
                raise UserError(
                    f"{self.path.parent} is in use by {_described(owner)}: wait until it has ended, or use another "
                    f"folder; if it has ended, delete {self.path}"
                )
            log.warning("%s: taking over the lock of %s, which has ended", self.path, _described(owner))
            self._delete_stale(text)
        self._released = threading.Event()
        threading.Thread(target=_renew, args=(self.path, self._released), daemon=True).start()
        atexit.register(self.release)

    def _create(self) -> bool:
        """Tries to create the lock. It is a hard link to a complete file, so that no process reads a part of it."""
        content = json.dumps({**_identity(), "command": sys.argv, "since": time.strftime("%Y-%m-%d %H:%M:%S %z")})
        draft = self.path.with_name(f".lock.{uuid.uuid4().hex[:8]}.part")
        draft.write_text(content)
        try:
            os.link(draft, self.path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            try:
                with open(self.path, "x") as file:
                    file.write(content)
            except FileExistsError:
                return False
        finally:
            draft.unlink(missing_ok=True)
        return True

    def _text(self) -> str | None:
        try:
            return self.path.read_text(errors="replace")
        except FileNotFoundError:
            return None

    def _is_renewed(self, owner: dict[str, Any]) -> bool:
        """Whether an owner on another machine updates the lock file; waits up to ``PATIENCE`` seconds."""
        message = "waiting up to %.0f s to see whether %s still uses %s"
        log.warning(message, PATIENCE, _described(owner), self.path.parent)
        deadline, first = time.monotonic() + PATIENCE, None
        while time.monotonic() < deadline:
            try:
                with open(self.path) as file:  # open() refreshes attributes on NFS, stat() may not
                    renewed = os.fstat(file.fileno()).st_mtime_ns
            except FileNotFoundError:
                return False
            first = first or renewed
            if renewed != first:
                return True
            time.sleep(min(1.0, PATIENCE / 10))
        return False

    def _delete_stale(self, text: str) -> None:
        """Deletes a stale lock, unless another command that saw the same lock has already taken it over."""
        with contextlib.suppress(FileNotFoundError), open(self.path) as file:
            with contextlib.suppress(OSError):  # a file system without file locks
                fcntl.flock(file, fcntl.LOCK_EX)
            same_file = os.fstat(file.fileno()).st_ino == os.stat(self.path).st_ino
            if same_file and file.read() == text:
                self.path.unlink()


def _renew(path: Path, released: threading.Event) -> None:
    while not released.wait(HEARTBEAT):
        try:
            os.utime(path)
        except FileNotFoundError:
            return
        except OSError:
            continue  # the next update may succeed


def _identity() -> dict[str, Any]:
    """Identifies a process uniquely. It includes the PID namespace: containers may share host names and process ids."""
    try:
        boot, space = Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")
    except OSError:
        boot, space = "", ""
    pid = os.getpid()
    machine = f"{boot} {space}".strip()
    return {"host": socket.gethostname(), "machine": machine, "pid": pid, "started": _start_time(pid)}


def _start_time(pid: int) -> str | None:
    """Start time of a process in clock ticks of the kernel; None if the process or /proc does not exist."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state[0] in "ZX" else state[19]


def _is_me(owner: dict[str, Any]) -> bool:
    return all(owner.get(name) == value for name, value in _identity().items())


def _is_alive(owner: dict[str, Any]) -> bool | None:
    """Whether the owner is running; None if this machine cannot know."""
    me = _identity()
    if not me["started"] or (owner.get("host"), owner.get("machine")) != (me["host"], me["machine"]):
        return None
    return isinstance(owner.get("pid"), int) and _start_time(owner["pid"]) == owner.get("started")


def _described(owner: dict[str, Any]) -> str:
    if not owner:
        return "an unknown command"
    command = owner.get("command")
    words = " ".join(map(str, command)) if isinstance(command, list) else "a command"
    return f"`{words}` (process {owner.get('pid')} on {owner.get('host')}, since {owner.get('since')})"


def _parsed(text: str | None) -> dict[str, Any]:
    """The owner in the text of a lock file; empty if the text is invalid."""
    try:
        content = json.loads(text or "")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
