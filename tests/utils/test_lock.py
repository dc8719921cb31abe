"""One command at a time in a folder."""

import json
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from proda.utils import lock as module
from proda.utils.errors import UserError
from proda.utils.lock import FolderLock

HOLD = """
import sys, time
from proda.utils.lock import FolderLock
FolderLock(sys.argv[1]).acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds ``tmp_path``."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def lines(caplog, monkeypatch):
    monkeypatch.setattr(module.log, "propagate", True)
    caplog.set_level(logging.INFO, logger="proda")
    return lambda: [record.getMessage() for record in caplog.records]


def write_lock(folder: Path, **changes) -> dict:
    """A lock as another process leaves it."""
    owner = {**module._identity(), "command": ["run.py", "x"], "since": "today", **changes}
    (folder / ".lock").write_text(json.dumps(owner))
    return owner


def test_it_says_who_holds_it_and_leaves_nothing(tmp_path):
    folder = tmp_path / "new"
    with pytest.raises(RuntimeError), FolderLock(folder):
        owner = json.loads((folder / ".lock").read_text())
        assert (owner["pid"], owner["host"], owner["command"]) == (os.getpid(), socket.gethostname(), sys.argv)
        raise RuntimeError
    assert list(folder.iterdir()) == []


def test_a_second_command_is_told_in_one_line_who_holds_the_folder(tmp_path, holder):
    with pytest.raises(UserError, match=rf"in use by `-c .*\(process {holder.pid} on ") as error:
        FolderLock(tmp_path).acquire()
    assert "\n" not in str(error.value) and str(tmp_path / ".lock") in str(error.value)
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == holder.pid


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path, holder, lines):
    holder.send_signal(signal.SIGKILL)
    while module.start_time(holder.pid):  # dead, and nobody has waited for it yet
        time.sleep(0.01)
    began = time.monotonic()
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert time.monotonic() - began < 2
    assert f"process {holder.pid}" in lines()[0] and "has ended" in lines()[0]


def test_a_process_that_has_the_number_of_a_dead_one_does_not_hold_its_lock(tmp_path):
    write_lock(tmp_path, pid=os.getppid(), started="1")
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_process_may_take_what_it_holds(tmp_path):
    failed, threads = FolderLock(tmp_path).acquire(), threading.active_count()  # and then the run failed
    failed.acquire()
    assert threading.active_count() == threads  # one thread updates a lock, and one release releases it
    with FolderLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("elsewhere", [{"host": "other"}, {"machine": "another boot, another container"}])
def test_an_owner_elsewhere_that_renews_its_lock_is_alive(tmp_path, monkeypatch, elsewhere):
    monkeypatch.setattr(module, "PATIENCE", 5.0)
    owner = write_lock(tmp_path, pid=os.getpid(), **elsewhere)
    renewing = threading.Timer(0.3, os.utime, [tmp_path / ".lock"])
    renewing.start()
    with pytest.raises(UserError, match=f"on {owner['host']}, since today"):
        FolderLock(tmp_path).acquire()
    assert json.loads((tmp_path / ".lock").read_text()) == owner


def test_an_owner_that_has_not_written_its_lock_yet_is_waited_for_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 5.0)
    (tmp_path / ".lock").touch()
    threading.Timer(0.3, write_lock, [tmp_path], {"host": "other"}).start()
    with pytest.raises(UserError, match=r"in use by `run.py x` .* on other"):
        FolderLock(tmp_path).acquire()


@pytest.mark.parametrize("content", ['{"host": "other", "pid": 1}', "", "no JSON", "[]"])
def test_a_lock_that_nobody_renews_is_taken_over(tmp_path, monkeypatch, content, lines):
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    (tmp_path / ".lock").write_text(content)
    with FolderLock(tmp_path):
        pass
    assert "waiting up to" in lines()[0] and "taking over" in lines()[1]


def test_a_held_lock_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT", 0.05)
    with FolderLock(tmp_path):
        os.utime(tmp_path / ".lock", (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / ".lock").stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_lock_that_another_host_has_taken_over_stays(tmp_path):
    lock = FolderLock(tmp_path).acquire()
    other = write_lock(tmp_path, host="other")
    lock.release()
    assert json.loads((tmp_path / ".lock").read_text()) == other


def test_the_end_of_a_forked_process_releases_nothing(tmp_path):
    with FolderLock(tmp_path) as lock:
        child = multiprocessing.get_context("fork").Process(target=lock.release)
        child.start()
        child.join()
        assert (tmp_path / ".lock").exists()


def _race(folder: Path, results) -> None:
    try:
        FolderLock(folder).acquire()
        results.put("held")
        time.sleep(1.0)
    except UserError:
        results.put("refused")


@pytest.mark.parametrize("stale", [False, True])
def test_one_of_many_that_race_for_a_folder_gets_it(tmp_path, stale):
    context = multiprocessing.get_context("fork")
    for trial in range(3):
        folder, results = tmp_path / str(trial), context.SimpleQueue()
        folder.mkdir()
        if stale:
            write_lock(folder, started="1")
        racers = [context.Process(target=_race, args=(folder, results)) for _ in range(6)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert sorted(results.get() for _ in racers) == ["held", *["refused"] * 5]
