"""Runs that build on one another: what is skipped, resumed, refused and run again, by runs that only leave files."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proda.cli.launch import load_experiment
from proda.run.domains import Domains
from proda.run.record import FORMAT, run_record
from proda.settings.reading import make_config
from proda.studies import up_to_date
from proda.utils import lock
from proda.utils.errors import UserError
from proda.utils.files import save_json
from tests.run.test_record import edit
from tests.small_runs import ROOT

EXPERIMENT = str(ROOT / "experiments/stage1_denoise.py")
PHOTOS = '[train]\nimages = "rgb"\n'


class Step:
    """A step of stage 1 on images that are only names, with a run that leaves files and trains nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.weights = folder / "run", folder / "before.pt"
        self.names = {"source": ["a", "b"], "target": ["x", "y"]}
        self.started: list[dict[str, Any]] = []  # flags of each start
        self.end: BaseException | None = None  # what the next run ends with after its checkpoint; None: its summary
        self.refusal: BaseException | None = None  # what it is refused with before it writes anything
        self.weights.write_bytes(b"warm-up")

    def images(self, domain: str) -> SimpleNamespace:
        names = ",".join(self.names[domain])
        return SimpleNamespace(fingerprint=lambda: names, label_fingerprint=lambda: f"labels of {names}")

    def start(self, experiment: str, flags: dict[str, Any]) -> None:
        assert experiment == EXPERIMENT
        self.started.append(flags)
        if self.refusal:
            raise self.refusal
        config = make_config(load_experiment(experiment).Config, flags)
        self.folder.mkdir(exist_ok=True)
        save_json(run_record(config, Domains(config).fingerprints()), self.folder / "config.json")
        (self.folder / "checkpoint_1.pt").write_text(f"of start {len(self.started)}")
        if self.end:
            raise self.end
        (self.folder / "last.pt").write_text(f"of start {len(self.started)}")
        (self.folder / "summary.json").write_text(json.dumps({"miou": 0.5, "start": len(self.started)}))

    def complete(self, *, overwrite: bool = False, **flags: Any) -> dict[str, Any]:
        flags = {"output": str(self.folder), "weights": str(self.weights)} | flags
        return up_to_date.run_if_outdated(EXPERIMENT, flags, overwrite=overwrite)

    def cut_short(self, error: BaseException | None = None) -> None:
        self.end = error or KeyboardInterrupt()
        with pytest.raises(type(self.end)):
            self.complete()
        self.end = None

    def refuses(self, error: type[Exception] = UserError, **flags: Any) -> str:
        """The line that another start is refused with; it changes nothing and starts nothing."""
        files, starts = self.files(), len(self.started)
        with pytest.raises(error) as caught:
            self.complete(**flags)
        assert self.files() == files and len(self.started) == starts
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def files(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in self.folder.rglob("*")}

    @property
    def resumed(self) -> list[bool]:
        """Of each start, whether it was a resumption."""
        return [flags["resume"] for flags in self.started]


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
    files = step.files()
    assert step.complete() == {"miou": 0.5, "start": 1} and step.resumed == [False]
    assert capsys.readouterr().out == f"{step.folder}: up to date, skipped\n"
    assert step.files() == files


def test_flags_of_speed_and_the_place_of_a_file_change_no_result(step, tmp_path):
    description = tmp_path / "photos.toml"
    description.write_text(PHOTOS)
    step.complete(target=str(description))
    moved, weights = description.rename(tmp_path / "moved.toml"), step.weights.rename(tmp_path / "moved.pt")
    speed = {"num_workers": 1, "device": "cpu", "val_batch_size": 3, "checkpoint_every": 7, "log_every": 9}
    step.complete(target=str(moved), weights=str(weights), **speed)
    assert step.resumed == [False]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(143), OSError("no space left")])
def test_a_run_cut_short_is_resumed(step, end, overwrite):
    step.cut_short(end)
    for _ in range(2):
        assert step.complete(overwrite=overwrite) == {"miou": 0.5, "start": 2}
    assert step.resumed == [False, True]


def test_a_run_cut_short_before_its_first_checkpoint_starts_again(step):
    step.complete()
    for name in ("summary.json", "last.pt", "checkpoint_1.pt"):
        (step.folder / name).unlink()
    step.complete()
    assert step.resumed == [False, False]


@pytest.mark.parametrize("finished", [True, False])
def test_what_has_changed_is_named(step, finished):
    if finished:
        step.complete()
    else:
        step.cut_short()
    expected = f"{step.folder} holds a run with different inputs (--seed was 0, is 3): repeat it with --overwrite"
    assert step.refuses(seed=3).startswith(expected)
    found = step.refuses(seed=3, lr=0.5, amp="bf16", dropout=0.0, temperature=2.0)
    assert "--seed was 0, is 3, --amp was off, is bf16" in found and "and 2 more changes" in found
    for domain, names in step.names.items():
        step.names = {**step.names, domain: ["x", "z"]}
        assert f"with different inputs ({domain} images changed" in step.refuses()
        step.names = {**step.names, domain: names}
    step.weights.write_bytes(b"another")
    assert f"(the content of --weights={step.weights} has changed)" in step.refuses()


def test_a_changed_description_is_named(step, tmp_path):
    description = tmp_path / "photos.toml"
    description.write_text(PHOTOS)
    step.complete(target=str(description))
    description.write_text("size = [64, 32]\n" + PHOTOS)
    assert "with different inputs (target description changed): repeat it" in step.refuses(target=str(description))


@pytest.mark.parametrize("record", [None, "", "{", "[]", "{}", '{"hash": "0", "images": []}'])
def test_a_run_with_a_damaged_record_is_refused(step, record):
    step.folder.mkdir()
    (step.folder / "last.pt").write_text("dear")
    if record is not None:
        (step.folder / "config.json").write_text(record)
    assert "holds a run without a readable config.json: repeat it with --overwrite" in step.refuses()


def test_overwrite_repeats_what_has_changed_and_leaves_nothing_of_the_run_before(step):
    step.complete()
    for name in ("best.pt", "prototypes.pt", "train.log", "events.out.tfevents.1", "checkpoint_9.pt"):
        (step.folder / name).write_text("old")
    (step.folder / "pseudo_labels").mkdir()
    (step.folder / "notes.txt").write_text("mine")
    assert step.complete(seed=3, overwrite=True) == {"miou": 0.5, "start": 2}
    assert step.resumed == [False, False]
    left = {"config.json", "summary.json", "checkpoint_1.pt", "last.pt", "notes.txt"}
    assert {path.name for path in step.folder.iterdir()} == left
    assert json.loads((step.folder / "config.json").read_text())["seed"] == 3


@pytest.mark.parametrize("began", [False, True])
def test_a_start_that_is_refused_leaves_what_was_there(step, began):
    if began:
        step.cut_short()
    files, step.refusal = step.files(), UserError("--batch_size=4 is more than the 2 training images")
    with pytest.raises(UserError, match="--batch_size=4"):
        step.complete()
    assert step.resumed == [False, True][: 1 + began] and step.files() == files
    assert began or not step.folder.exists()


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        ({"weights": "no.pt"}, FileNotFoundError, "--weights=no.pt: no such file; expected the weights that"),
        ({"wieghts": "x"}, UserError, "unknown flag --wieghts; the nearest is --weights"),
    ],
)
def test_a_flag_that_cannot_be_used_is_named_and_nothing_is_written(step, flags, error, words):
    assert words in step.refuses(error, **flags)
    assert not step.folder.exists()


def test_flags_that_the_record_does_not_know_and_old_ones(step):
    step.complete(validate_teacher=True)
    edit(step.folder, temperature=None, validate_teacher=None, judge_teacher=True, gone=3)
    step.complete(validate_teacher=True)
    assert step.resumed == [False]
    assert "(--temperature was 1.0, is 2.0)" in step.refuses(temperature=2.0, validate_teacher=True)
    assert "(--validate_teacher was True, is False)" in step.refuses()


def test_data_that_the_record_does_not_know_yet_change_nothing_and_a_newer_record_is_one_line(step):
    step.complete()
    run = json.loads((step.folder / "config.json").read_text())["run"]
    edit(step.folder, run=run | {"data": {"source images": run["data"]["source images"]}})
    step.complete()
    assert step.resumed == [False]
    edit(step.folder, run=run | {"format": FORMAT + 1})
    assert "config.json: written by a newer version of proda" in step.refuses()


@pytest.mark.parametrize("flag", ["weights", "prototypes", "pseudo_labels"])
def test_overwrite_does_not_delete_what_a_flag_names(step, flag):
    step.complete()
    mine = step.folder / {"weights": "last.pt", "prototypes": "prototypes.pt", "pseudo_labels": "pseudo_labels"}[flag]
    if flag != "pseudo_labels":
        mine.write_text("dear")
    assert f"--{flag}={mine}: --overwrite would delete it" in step.refuses(overwrite=True, seed=3, **{flag: str(mine)})


def test_nothing_is_deleted_under_a_command_that_uses_the_folder(step):
    step.complete()
    owner = {**lock._identity(), "pid": os.getppid(), "started": lock.start_time(os.getppid())}
    (step.folder / ".lock").write_text(json.dumps(owner))
    assert f"process {os.getppid()} on" in step.refuses(overwrite=True, seed=3)


def test_of_a_run_that_is_repeated_the_summary_goes_first(step, monkeypatch):
    """So that half of what was deleted is never taken for a finished run."""
    step.complete()
    deleted = []
    monkeypatch.setattr(Path, "unlink", lambda path, **_: deleted.append(path.name))
    up_to_date.clear(step.folder)
    assert deleted[0] == "summary.json" and {"last.pt", "checkpoint_1.pt"} <= set(deleted)


def test_a_finished_run_counts_with_its_own_flags_and_weights_alone(step):
    flags = {"output": str(step.folder), "weights": str(step.weights)}
    assert up_to_date.finished_summary(EXPERIMENT, flags) is None
    summary = step.complete()
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
