"""Runs that build on one another: what is skipped, resumed, refused and run again, by runs that only leave files."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proda.cli.launch import load_experiment
from proda.run.domains import Domains
from proda.run.job import Job, read_summary
from proda.settings.reading import make_config
from proda.studies import up_to_date
from proda.utils import lock
from proda.utils.errors import UserError
from proda.utils.files import sha256
from tests.small_runs import ROOT

EXPERIMENT = str(ROOT / "experiments/stage1_denoise.py")
PHOTOS = '[train]\nimages = "rgb"\n'


class Step:
    """A step of stage 1 on images that are only names, with a run that leaves files and trains nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.weights = folder / "run", folder / "before.pt"
        self.names = {"source": ["a", "b"], "target": ["x", "y"]}
        self.started: list[dict[str, Any]] = []  # flags of each start
        self.record: dict[str, Any] = {}  # inputs.json as the last start found it
        self.end: BaseException | None = None  # what the next run ends with after its checkpoint; None: its summary
        self.refusal: BaseException | None = None  # what it is refused with before it writes anything
        self.weights.write_bytes(b"warm-up")

    def images(self, domain: str) -> SimpleNamespace:
        names = ",".join(self.names[domain])
        return SimpleNamespace(fingerprint=lambda: names, label_fingerprint=lambda: f"labels of {names}")

    def start(self, experiment: str, flags: dict[str, Any]) -> None:
        assert experiment == EXPERIMENT
        self.started.append(flags)
        self.record = json.loads((self.folder / "inputs.json").read_text())
        if self.refusal:
            raise self.refusal
        (self.folder / "checkpoint_1.pt").write_text(f"of start {len(self.started)}")
        if self.end:
            raise self.end
        (self.folder / "last.pt").write_text(f"of start {len(self.started)}")
        (self.folder / "summary.json").write_text(json.dumps({"miou": 0.5, "start": len(self.started)}))

    def complete(self, *, overwrite: bool = False, **flags: Any) -> dict[str, Any]:
        flags = {"output": str(self.folder), "weights": str(self.weights)} | flags
        return up_to_date.run_if_outdated(EXPERIMENT, flags, overwrite=overwrite)

    def refuses(self, **flags: Any) -> str:
        """The line that another start is refused with; it changes nothing and starts nothing."""
        files, starts = {path: path.read_bytes() for path in self.folder.iterdir()}, len(self.started)
        with pytest.raises(ValueError) as caught:
            self.complete(**flags)
        assert {path: path.read_bytes() for path in self.folder.iterdir()} == files and len(self.started) == starts
        assert "\n" not in str(caught.value)
        return str(caught.value)


@pytest.fixture
def step(tmp_path, monkeypatch) -> Step:
    found = Step(tmp_path)
    monkeypatch.setattr(up_to_date, "start", found.start)
    for name in ("source", "target"):
        monkeypatch.setattr(Domains, name, property(lambda _, name=name: found.images(name)))
    monkeypatch.setattr(Domains, "validation", None)  # its images are no files
    return found


def test_what_was_done_with_the_same_inputs_is_skipped(step, capsys):
    assert step.complete() == {"miou": 0.5, "start": 1}
    files = {path: path.stat().st_mtime_ns for path in step.folder.iterdir()}
    assert step.complete() == {"miou": 0.5, "start": 1} and len(step.started) == 1
    assert capsys.readouterr().out == f"{step.folder}: up to date, skipped\n"
    assert {path: path.stat().st_mtime_ns for path in step.folder.iterdir()} == files


def test_flags_of_speed_and_the_place_of_a_file_change_no_result(step, tmp_path):
    step.complete()
    moved = step.weights.rename(tmp_path / "moved.pt")
    step.complete(weights=str(moved), num_workers=1, device="cpu", val_batch_size=3, checkpoint_every=7, log_every=9)
    assert len(step.started) == 1


def test_what_it_depends_on_is_recorded_before_it_starts(step):
    step.complete(iterations=7)
    assert step.record == json.loads((step.folder / "inputs.json").read_text())
    assert step.record["files"] == {"weights": sha256(step.weights)}
    configuration = step.record["configuration"]
    assert configuration["iterations"] == 7 and configuration["lr"] == 1e-4  # defaults too
    assert not {"output", "weights", "num_workers", "resume"} & configuration.keys()
    assert step.record["data"].keys() == {"classes", "source images", "source labels", "target images"}
    assert step.record["version"] == 1
    assert step.started[0]["resume"] is False


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(143), OSError("no space left")])
def test_a_run_cut_short_is_resumed(step, end):
    step.end = end
    with pytest.raises(type(end)):
        step.complete()
    assert (step.folder / "inputs.json").is_file()
    step.end = None
    assert step.complete() == {"miou": 0.5, "start": 2}
    assert [flags["resume"] for flags in step.started] == [False, True]


def test_a_run_cut_short_before_its_first_checkpoint_starts_again(step):
    step.complete()
    for name in ("summary.json", "last.pt", "checkpoint_1.pt"):
        (step.folder / name).unlink()
    step.complete()
    assert [flags["resume"] for flags in step.started] == [False, False]


def test_a_changed_flag_is_named_with_both_values(step):
    step.complete()
    expected = f"{step.folder} holds a run with different inputs (--seed was 0, is 3): repeat it with --"
    assert expected in step.refuses(seed=3)
    found = step.refuses(seed=3, lr=0.5, amp="bf16", dropout=0.0, temperature=2.0)
    assert "(--amp was off, is bf16, --dropout was 0.1, is 0.0, --lr was 0.0001, is 0.5, and 2 more changes)" in found


def test_changed_weights_are_named(step):
    step.complete()
    step.weights.write_bytes(b"another")
    assert "holds a run with different inputs (content of --weights changed): repeat it" in step.refuses()


@pytest.mark.parametrize("domain", ["source", "target"])
def test_a_changed_list_of_images_is_named(step, domain):
    step.complete()
    step.names[domain] = ["x", "z"]
    assert f"with different inputs ({domain} images changed" in step.refuses()


def test_a_changed_description_is_named_and_its_place_does_not_matter(step, tmp_path):
    description = tmp_path / "photos.toml"
    description.write_text(PHOTOS)
    step.complete(target=str(description))
    description.write_text("size = [64, 32]\n" + PHOTOS)
    assert "with different inputs (target description changed): repeat it" in step.refuses(target=str(description))
    description.write_text(PHOTOS)
    step.complete(target=str(description))
    assert len(step.started) == 1


def test_half_of_a_run_with_other_inputs_is_refused_too(step):
    step.end = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        step.complete()
    assert "--seed was 0, is 3" in step.refuses(seed=3)


@pytest.mark.parametrize("record", [None, "", "{", "[]", "{}", '{"hash": "0", "images": []}'])
def test_a_run_by_hand_or_with_a_damaged_record_is_refused(step, record):
    step.folder.mkdir()
    (step.folder / "last.pt").write_text("dear")
    if record is not None:
        (step.folder / "inputs.json").write_text(record)
    assert "holds a run without a readable inputs.json: repeat it with --overwrite" in step.refuses()


def test_overwrite_does_anew_what_has_changed_and_leaves_nothing_of_the_run_before(step):
    step.complete()
    for name in ("best.pt", "prototypes.pt", "train.log", "events.out.tfevents.1", "checkpoint_9.pt"):
        (step.folder / name).write_text("old")
    (step.folder / "pseudo_labels").mkdir()
    (step.folder / "notes.txt").write_text("mine")
    assert step.complete(seed=3, overwrite=True) == {"miou": 0.5, "start": 2}
    assert step.started[-1]["resume"] is False
    left = {"inputs.json", "summary.json", "checkpoint_1.pt", "last.pt", "notes.txt"}
    assert {path.name for path in step.folder.iterdir()} == left
    assert step.record["configuration"]["seed"] == 3


def test_overwrite_skips_what_is_up_to_date_and_resumes_what_is_half_done(step):
    step.end = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        step.complete()
    step.end = None
    step.complete(overwrite=True)
    step.complete(overwrite=True)
    assert [flags["resume"] for flags in step.started] == [False, True]


def test_a_start_that_is_refused_leaves_nothing(step):
    step.refusal = ValueError("--batch_size=4 is more than the 2 training images")
    with pytest.raises(ValueError, match="--batch_size=4"):
        step.complete()
    assert len(step.started) == 1 and not step.folder.exists()


def test_a_resumption_that_is_refused_keeps_the_run(step):
    step.end = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        step.complete()
    step.refusal = ValueError("no")
    with pytest.raises(ValueError):
        step.complete()
    assert {path.name for path in step.folder.iterdir()} == {"inputs.json", "checkpoint_1.pt"}


def test_weights_that_are_not_there_are_named_and_nothing_is_written(step, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--weights=no\.pt: no such file; expected the weights that"):
        step.complete(weights="no.pt")
    assert not step.folder.exists() and not step.started


def test_a_flag_that_does_not_exist_is_named_and_nothing_is_written(step):
    with pytest.raises(ValueError, match="unknown flag --wieghts; the nearest is --weights"):
        step.complete(wieghts="x")
    assert not step.folder.exists()


def test_the_record_has_the_parts_that_a_damaged_one_is_told_by(step):
    step.complete()
    assert step.record.keys() == {*up_to_date.PARTS, "version"}


def edit(step: Step, **changes: Any) -> None:
    record = json.loads((step.folder / "inputs.json").read_text()) | changes
    (step.folder / "inputs.json").write_text(json.dumps(record))


def test_a_flag_that_the_record_is_too_old_to_know_had_its_default(step):
    step.complete()
    record = json.loads((step.folder / "inputs.json").read_text())
    del record["configuration"]["temperature"]
    edit(step, configuration=record["configuration"])
    step.complete()
    assert len(step.started) == 1
    assert "(--temperature was 1.0, is 2.0)" in step.refuses(temperature=2.0)


def test_a_record_with_old_names_of_flags_is_read_with_the_present_ones(step):
    step.complete(adabn=True)
    old = {"target_statistics" if name == "adabn" else name: v for name, v in step.record["configuration"].items()}
    edit(step, configuration=old)
    step.complete(adabn=True)
    assert len(step.started) == 1
    assert "(--adabn was True, is False)" in step.refuses()


def test_a_flag_that_is_gone_is_named(step):
    step.complete()
    edit(step, configuration={**step.record["configuration"], "old": 3})
    assert "(--old was 3, is None)" in step.refuses()


def test_a_record_of_the_version_before_is_good_and_the_data_are_said_to_be_unknown(step, capsys):
    step.complete()
    old = {name: step.record[name] for name in ("configuration", "files")}
    old |= {"descriptions": {}, "images": {"source": "0", "target": "1"}, "hash": "2"}
    (step.folder / "inputs.json").write_text(json.dumps(old))
    step.complete()
    assert len(step.started) == 1
    assert "inputs.json was written by an older version: the data cannot be compared" in capsys.readouterr().out
    assert "(--seed was 0, is 3)" in step.refuses(seed=3)


def test_data_that_the_record_does_not_know_yet_change_nothing(step):
    step.complete()
    edit(step, data={"source images": step.record["data"]["source images"]})
    step.complete()
    assert len(step.started) == 1


def test_a_record_of_a_newer_version_is_one_line(step):
    step.complete()
    edit(step, version=up_to_date.VERSION + 1)
    assert "inputs.json: written by a newer version of proda" in step.refuses()


@pytest.mark.parametrize("flag", ["weights", "prototypes", "pseudo_labels"])
def test_overwrite_does_not_delete_what_a_flag_names(step, flag):
    step.complete()
    mine = step.folder / {"weights": "last.pt", "prototypes": "prototypes.pt", "pseudo_labels": "pseudo_labels"}[flag]
    if flag != "pseudo_labels":
        mine.write_text("dear")
    files = sorted(step.folder.iterdir())
    with pytest.raises(UserError, match=f"--{flag}=.*: --overwrite would delete it"):
        step.complete(overwrite=True, seed=3, **{flag: str(mine)})
    assert sorted(step.folder.iterdir()) == files and len(step.started) == 1


def test_nothing_is_deleted_under_a_command_that_uses_the_folder(step):
    step.complete()
    owner = {**lock._identity(), "pid": os.getppid(), "started": lock._start_time(os.getppid())}
    (step.folder / ".lock").write_text(json.dumps(owner))
    files = sorted(step.folder.iterdir())
    with pytest.raises(UserError, match=f"is in use by .*process {os.getppid()} on"):
        step.complete(overwrite=True, seed=3)
    assert sorted(step.folder.iterdir()) == files and len(step.started) == 1


def test_what_is_done_anew_goes_record_first_so_that_half_of_it_is_never_taken_for_whole(step, monkeypatch):
    step.complete()
    deleted = []
    monkeypatch.setattr(Path, "unlink", lambda path, **_: deleted.append(path.name))
    up_to_date.clear(step.folder)
    assert deleted[0] == "inputs.json" and {"summary.json", "last.pt", "checkpoint_1.pt"} <= set(deleted)
    assert read_summary(step.folder)["start"] == 1  # nothing went, so the list is of what would


def test_a_run_that_a_command_of_its_own_changed_is_not_up_to_date(step):
    """Its ``--overwrite`` and a longer ``--resume`` delete the record, which describes another result."""
    flags = {"output": str(step.folder), "weights": str(step.weights), "device": "cpu"}
    module = load_experiment(EXPERIMENT)
    for change, unchanged in (
        ({"overwrite": True, "seed": 7}, False),
        ({"resume": True, "iterations": 9}, False),
        ({"resume": True}, True),
    ):
        step.complete(device="cpu", overwrite=True)
        settings = make_config(module.Config, flags, module.PRESETS)
        (step.folder / "config.json").write_text(json.dumps(asdict(settings)))
        job = Job(replace(settings, **change))
        try:
            job.open()
        finally:
            job.lock.release()
        assert (step.folder / "inputs.json").exists() == unchanged


def test_a_finished_run_counts_with_its_own_flags_and_weights_alone(step):
    flags = {"output": str(step.folder), "weights": str(step.weights)}
    assert up_to_date.finished_summary(EXPERIMENT, flags) is None
    summary = step.complete()
    assert up_to_date.finished_summary(EXPERIMENT, flags) == summary
    step.names["target"].append("z")  # data are not looked at
    assert up_to_date.finished_summary(EXPERIMENT, flags) == summary
    assert up_to_date.finished_summary(EXPERIMENT, flags | {"seed": 1}) is None
    step.weights.write_bytes(b"another warm-up")
    assert up_to_date.finished_summary(EXPERIMENT, flags) is None
    step.weights.unlink()
    assert up_to_date.finished_summary(EXPERIMENT, flags) is None
    step.weights.write_bytes(b"warm-up")
    (step.folder / "summary.json").unlink()
    assert up_to_date.finished_summary(EXPERIMENT, flags) is None
