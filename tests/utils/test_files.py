"""A reader sees the old file or the new one."""

import errno
import hashlib
import json
import os

import pytest
import torch

from proda.utils.errors import UserError
from proda.utils.files import atomic_write, fitting_name, safe_path, save_json, save_tensors, sha256, sha256_of_tensors


def test_a_new_file_appears_whole_in_a_folder_that_was_not_there(tmp_path):
    path = tmp_path / "a" / "b.txt"
    with atomic_write(path) as partial:
        partial.write_text("new")
        assert not path.exists() and partial.parent == path.parent
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_a_writer_that_fails_leaves_the_old_file_and_no_remains(tmp_path):
    path = tmp_path / "b.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), atomic_write(path) as partial:
        partial.write_text("ne")
        raise OSError("full")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["b.txt"]


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"No space left on device: .*t\.pt"):
        save_tensors({}, tmp_path / "t.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_writes_nothing_is_an_error_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "b.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_write(path):
        pass
    assert path.read_text() == "old"


def test_an_unfinished_file_matches_no_pattern_that_readers_look_for(tmp_path):
    with atomic_write(tmp_path / "checkpoint_1.pt") as partial:
        partial.write_text("half")
        assert list(tmp_path.glob("checkpoint_*.pt")) == []
        assert partial.name.endswith(".part")


def test_json_has_null_for_nan_at_any_depth(tmp_path):
    nan = float("nan")
    save_json({"a": nan, "b": [1.5, nan], "c": {"d": (nan, "x")}}, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [1.5, None], "c": {"d": [None, "x"]}}
    assert "NaN" not in (tmp_path / "x.json").read_text()


def test_content_that_is_no_json_keeps_the_old_file(tmp_path):
    save_json({"a": 1}, tmp_path / "x.json")
    with pytest.raises(TypeError):
        save_json({"a": object()}, tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 2.5])},  # value
        {"a": torch.tensor([1.0, 2.0], dtype=torch.float64)},  # type
        {"a": torch.tensor([[1.0, 2.0]])},  # shape
        {"b": torch.tensor([1.0, 2.0])},  # name
    ],
)
def test_the_checksum_of_tensors_changes_with_anything(other):
    one = {"a": torch.tensor([1.0, 2.0])}
    assert sha256_of_tensors(one) == sha256_of_tensors({"a": torch.tensor([1.0, 9.0, 2.0, 9.0])[::2]})
    assert sha256_of_tensors(one) != sha256_of_tensors(other)


def test_scalars_and_half_precision_have_checksums_too():
    assert sha256_of_tensors({"n": torch.tensor(3)}) != sha256_of_tensors({"n": torch.tensor(4)})
    assert len(sha256_of_tensors({"h": torch.ones(2, dtype=torch.bfloat16)})) == 64


def test_tensors_come_back_and_are_equal_files_whichever_process_writes_them(tmp_path, monkeypatch):
    for process in (1, 2):
        monkeypatch.setattr(os, "getpid", lambda process=process: process)
        save_tensors({"a": torch.arange(3)}, tmp_path / f"{process}.pt")
    assert sha256(tmp_path / "1.pt") == sha256(tmp_path / "2.pt")
    assert torch.load(tmp_path / "1.pt", weights_only=True)["a"].tolist() == [0, 1, 2]


LONG = {
    "letters": "a" * 251,
    "Chinese": "图" * 83 + "ab",
    "combined": "e\u0301" * 83 + "ab",
    "not UTF-8": "\udcff" * 251,
}


@pytest.mark.parametrize("name", LONG.values(), ids=LONG.keys())
def test_a_file_of_the_longest_name_is_written_and_a_derived_one_fits(tmp_path, name):
    path = tmp_path / f"{name}.png"
    assert len(os.fsencode(path.name)) == 255
    with atomic_write(path) as partial:
        partial.write_text("new")
        assert partial.name.startswith(".") and partial.name.endswith(".part") and partial.parent == tmp_path
    assert os.listdir(tmp_path) == [path.name] and path.read_text() == "new"
    assert fitting_name(name, ".png") == path.name

    derived = [fitting_name(name + more, "_pred_labelIds.png") for more in ("", "b", "c")]
    assert len(set(derived)) == 3 and derived == [
        fitting_name(name + more, "_pred_labelIds.png") for more in ("", "b", "c")
    ]
    for file in derived:
        assert 250 < len(os.fsencode(file)) <= 255 or name == LONG["not UTF-8"]
        assert file.endswith("_pred_labelIds.png") and "\udcff" not in file
        (tmp_path / file).touch()


def test_a_name_that_fits_stays_and_a_longer_one_has_the_beginning_and_a_checksum(tmp_path):
    assert safe_path(tmp_path, "a" * 251, ".png") == tmp_path / f"{'a' * 251}.png"
    digest = sha256_of_text("a" * 252)[:12]
    assert safe_path(tmp_path, "a" * 252, ".png") == tmp_path / f"{'a' * 238}-{digest}.png"


def sha256_of_text(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_names_that_are_not_utf8_become_names_of_files_that_are(tmp_path):
    files = [safe_path(tmp_path, name, ".png").name for name in ("a\udcff", "a\udcfe", "\udcff" * 200)]
    assert len(set(files)) == 3 and all(len(file.encode()) <= 255 for file in files)
    assert files[0] == f"a\N{REPLACEMENT CHARACTER}-{hashlib.sha256(b'a' + bytes([255])).hexdigest()[:12]}.png"
    for name in ("\udcff/a", "\udcff\n", ".\udcff", "\ud800"):
        with pytest.raises(UserError, match="cannot name a file"):
            safe_path(tmp_path, name)
