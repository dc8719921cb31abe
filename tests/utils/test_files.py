"""A reader sees the old file or the new one."""

import errno
import json
import os

import pytest
import torch

from proda.utils.files import atomic_write, save_json, save_tensors, sha256, sha256_of_tensors


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
