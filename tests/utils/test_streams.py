"""Output that nobody reads any more, or that cannot be encoded, is no error."""

import errno
import os
import subprocess
import sys

import pytest
from tqdm import tqdm

from proda.utils.streams import lasting_output

PRINTS = """
import os, sys
from proda.utils.streams import lasting_output
with lasting_output():
    for number in range(2000):
        print("a line \u00fc", flush=number % 2 == 0)
        print("another", file=sys.stderr)
    sys.stdout.flush()  # what is buffered would be printed by both processes
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
    print("the last")
os.makedirs(sys.argv[1], exist_ok=True)
"""


def without_reader():
    """A stream into a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w", encoding="ascii")


@pytest.mark.parametrize("options", [[], ["-u"]], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("closed", ["a pipe without a reader", "no stream at all"])
def test_a_program_goes_on_in_silence_without_a_reader(tmp_path, options, closed):
    command = [sys.executable, *options, "-c", PRINTS, str(tmp_path / "end")]
    if closed == "no stream at all":
        done = subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command])
    else:
        with without_reader() as stream:
            done = subprocess.run(command, stdout=stream, stderr=stream)
    assert done.returncode == 0 and (tmp_path / "end").exists()


def test_what_a_reader_gets_is_whole_and_in_order(tmp_path):
    for options in ([], ["-u"]):
        command = [sys.executable, *options, "-c", "print('first'); " + PRINTS, str(tmp_path / f"{len(options)}")]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", env={**os.environ, "PYTHONUTF8": "1"})
        assert done.stdout.splitlines() == ["first", *["a line ü"] * 2000, "the last", "the last"], done.stderr
        assert done.stderr.splitlines() == ["another"] * 2000


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_characters_that_a_stream_cannot_encode_are_escaped(tmp_path, monkeypatch, name):
    with open(tmp_path / "log", "w", encoding="ascii", errors="strict") as stream:
        monkeypatch.setattr(sys, name, stream)
        monkeypatch.setattr(sys, f"__{name}__", stream)
        with lasting_output():
            print("größe", "byte\udcff", file=getattr(sys, name))
            tqdm.write("\N{MINUS SIGN}1", file=getattr(sys, name))
        assert getattr(sys, name) is stream
    assert (tmp_path / "log").read_text() == "gr\\xf6\\xdfe byte\\udcff\n\\u22121\n"


def test_a_full_disk_is_still_an_error(monkeypatch):
    with open("/dev/full", "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "__stdout__", stream)
        with pytest.raises(OSError) as caught, lasting_output():
            print("a result", flush=True)
    assert caught.value.errno == errno.ENOSPC


def test_streams_of_a_notebook_stay_as_they_are(capsys):
    with lasting_output():
        print("a line")
    assert capsys.readouterr().out == "a line\n"
