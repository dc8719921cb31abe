"""A damaged file stops a run, and the run goes on when that file, and no other, was mended or left out.

The files of these small data sets are all read when a run starts, so they are damaged while it runs.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ignite.engine import Events
from PIL import Image

from proda.data.samples import SourceTraining
from proda.engines.events import ProdaEvents
from proda.handlers.seeding import SeedIterations
from proda.studies.up_to_date import run_if_outdated
from proda.utils.errors import UserError
from tests.small_runs import checkpoint, differing, flags, train

SOURCE, SOURCE_LABEL = "gta5/images/00004.png", "gta5/labels/00004.png"
TARGET = "cityscapes/leftImg8bit/train"
VAL = "cityscapes/leftImg8bit/val"


@contextmanager
def at(event, act: Callable) -> Iterator[None]:
    """``act`` is called at an event of every training run within the block."""

    def attach(self: SeedIterations, trainer) -> None:
        attach_seeds(self, trainer)
        trainer.add_event_handler(event, act)

    attach_seeds = SeedIterations.attach
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SeedIterations, "attach", attach)
        yield


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class Trial:
    """A run of ``stage`` that a file stops, which is damaged when its iteration begins."""

    def __init__(self, stage: str, root: Path, weights: Path, folder: Path, **more) -> None:
        self.stage, self.root, self.weights, self.folder = stage, root, weights, folder
        self.more = {"checkpoint_every": 100, "num_workers": 0, **more}

    def path(self, file: str) -> Path:
        found = self.root / file
        return found if found.is_file() else sorted(found.rglob("*.png"))[1]

    def stop(self, file: str, *, iteration: int = 2) -> str:
        path = self.path(file)
        self.whole = path.read_bytes()
        with at(Events.ITERATION_STARTED(once=iteration), lambda: truncate(path)), pytest.raises(UserError) as error:
            self.train()
        assert str(error.value).startswith(f"{path}: not a complete")
        return path.stem.removesuffix("_leftImg8bit")

    def mend(self, file: str) -> None:
        """Writes the same pixels in other bytes."""
        path = self.path(file)
        path.write_bytes(self.whole)
        Image.open(path).copy().save(path, compress_level=0)
        assert path.stat().st_size != len(self.whole)

    def train(self, **more) -> dict:
        return train(self.stage, self.root, self.weights, self.folder, **{**self.more, **more})

    def refused(self, **more) -> str:
        with pytest.raises(UserError) as error:
            self.train(resume=True, **more)
        assert "\n" not in str(error.value)
        return str(error.value)


@pytest.fixture
def root(data, tmp_path) -> Path:
    return shutil.copytree(data, tmp_path / "data")


@pytest.mark.parametrize(
    ("stage", "file", "what"),
    [
        ("source_only", SOURCE, "source image 00004"),
        ("source_only", SOURCE_LABEL, "source image 00004"),
        ("source_only", VAL, "validation image"),
        ("stage1_denoise", TARGET, "target image"),
    ],
)
def test_a_run_goes_on_with_the_mended_file_and_ends_with_the_same_bits(
    stage, file, what, root, data, weights, tmp_path, capsys
):
    trial = Trial(stage, root, weights, tmp_path / "run")
    trial.stop(file)
    trial.mend(file)
    trial.train(resume=True)
    out = capsys.readouterr().out
    assert f"the {what}" in out and "which stopped the run, was repaired or replaced, and so the run goes on" in out
    assert "resumed from" in out  # nothing was lost although no checkpoint was due
    train(stage, data, weights, tmp_path / "whole", **trial.more)
    assert not differing(checkpoint(tmp_path / "run", 5), checkpoint(tmp_path / "whole", 5))
    trial.train(resume=True, iterations=6)  # and what was changed then is what counts from now on
    trial.path(file).write_bytes(trial.whole)
    assert "changed" in trial.refused(iterations=7)


@pytest.mark.parametrize(
    ("stage", "file", "delete"),
    [
        ("source_only", SOURCE, False),
        ("source_only", SOURCE, True),
        ("source_only", VAL, False),
        ("source_only", VAL, True),
        ("stage1_denoise", TARGET, False),
    ],
)
def test_a_run_goes_on_without_the_file_and_all_others_keep_their_places(
    stage, file, delete, root, weights, tmp_path, capsys
):
    trial = Trial(stage, root, weights, tmp_path / "run")
    name, path = trial.stop(file), trial.path(file)
    if delete:
        path.unlink()
        assert "changed" in trial.refused()  # that it is gone may be a mistake
    skip = tmp_path / "skip.txt"
    skip.write_text(f"{name}\n")
    for iterations in (5, 6):
        trial.train(resume=True, skip_bad=str(skip), iterations=iterations)
    out = capsys.readouterr().out
    assert f"image {name}, which stopped the run, is left out from now on" in out
    assert f"--skip_bad was , is {skip}" in out and "resumed from" in out


def test_the_example_that_takes_the_place_of_another_is_the_only_one_that_moves(root, weights, tmp_path, monkeypatch):
    seen: list[tuple[int, str]] = []
    get = SourceTraining.__getitem__

    def noted(self, sample):
        item = get(self, sample)
        seen.append((sample.index, item["name"]))
        return item

    trial = Trial("source_only", root, weights, tmp_path / "run")
    trial.stop(SOURCE)
    skip = tmp_path / "skip.txt"
    skip.write_text("source/00004\n")
    monkeypatch.setattr(SourceTraining, "__getitem__", noted)
    trial.train(resume=True, skip_bad=str(skip), iterations=9)
    names = sorted(path.stem for path in (root / "gta5/images").glob("*.png"))
    place = names.index("00004")
    expected = [*names[:place], names[place + 1], *names[place + 1 :]]
    assert dict(seen) == dict(enumerate(expected)) and len(expected) == 8


def test_two_damaged_files_of_a_list_are_left_out_although_only_one_has_stopped_the_run(root, weights, tmp_path):
    trial = Trial("source_only", root, weights, tmp_path / "run")
    trial.stop(SOURCE)
    truncate(root / "gta5/images/00002.png")
    skip = tmp_path / "skip.txt"
    skip.write_text("source/00002\nsource/00004\n")
    assert trial.train(resume=True, skip_bad=str(skip))["iterations"] == 5


def _another(root: Path) -> None:
    path = root / "gta5/images/00002.png"
    Image.open(path).copy().save(path, compress_level=0)


@pytest.mark.parametrize(
    ("change", "skipped", "words"),
    [
        (_another, "", "source images changed"),
        (lambda root: None, "source/00003\n", "source images changed"),
        (lambda root: (root / "gta5/images/00003.png").unlink(), "", "source images changed"),
    ],
    ids=["another file changed", "a good file skipped", "another file is gone"],
)
def test_any_other_change_stays_refused(change, skipped, words, root, weights, tmp_path):
    trial = Trial("source_only", root, weights, tmp_path / "run")
    trial.stop(SOURCE)
    trial.mend(SOURCE)
    change(root)
    skip = tmp_path / "skip.txt"
    skip.write_text(skipped)
    before = (tmp_path / "run/config.json").read_bytes()
    assert words in trial.refused(**{"skip_bad": str(skip)} if skipped else {})
    assert (tmp_path / "run/config.json").read_bytes() == before


def test_a_file_that_is_damaged_between_two_sessions_may_be_mended_as_well(root, weights, tmp_path):
    trial = Trial("source_only", root, weights, tmp_path / "run", iterations=2)
    trial.train()
    path = trial.path(SOURCE)
    trial.whole = path.read_bytes()
    truncate(path)
    assert trial.refused(iterations=4).startswith(f"{path}: not a complete image")
    trial.mend(SOURCE)
    assert trial.train(resume=True, iterations=4)["iterations"] == 4


@pytest.mark.parametrize("mended", [True, False])
def test_labels_that_a_damaged_photograph_stopped_before_the_first_iteration_are_completed(
    mended, root, weights, tmp_path, monkeypatch
):
    trial = Trial("stage1_denoise", root, weights, tmp_path / "run")
    path = trial.path(TARGET)
    trial.whole = path.read_bytes()
    truncate(path)
    for module in ("data", "domains"):  # a large data set, of which this file is not looked at when the run starts
        monkeypatch.setattr(f"proda.run.{module}.spot_check", lambda *_: [(48, 96)])
    with pytest.raises(UserError, match="not a complete image"):
        trial.train()
    assert (tmp_path / "run/pseudo_labels/manifest.json").exists()
    skip = tmp_path / "skip.txt"
    skip.write_text(path.stem.removesuffix("_leftImg8bit") + "\n")
    more = {} if mended else {"skip_bad": str(skip)}
    if mended:
        trial.mend(TARGET)
    assert trial.train(resume=True, **more)["iterations"] == 5
    assert trial.train(resume=True, iterations=6, **more)["iterations"] == 6


def test_a_pipeline_goes_on_by_the_same_command(root, weights, tmp_path):
    trial = Trial("source_only", root, weights, tmp_path / "run")
    values = {n: v for n, v in flags("source_only", root, weights, tmp_path / "run", **trial.more).items()}
    name = trial.stop(VAL)
    skip = tmp_path / "skip.txt"
    skip.write_text(f"val/{name}\n")
    for _ in range(2):  # resumed; then up to date
        assert run_if_outdated("source_only", {**values, "skip_bad": str(skip)})["iterations"] == 5
    assert "stopped_by" in json.loads((tmp_path / "run/config.json").read_text())["run"]


# Exceptions that no file causes


def _fail() -> None:
    raise ArithmeticError("an error of a user's handler")


@pytest.mark.parametrize(
    ("event", "saved"),
    [
        (Events.ITERATION_COMPLETED(once=3), 3),
        (Events.ITERATION_STARTED(once=4), 3),
        (Events.GET_BATCH_COMPLETED(once=4), 4),  # which filters by iterations that have begun
        (Events.EPOCH_STARTED(once=2), 2),
        (Events.EPOCH_COMPLETED(once=2), 4),
        (ProdaEvents.VALIDATED(once=2), 2),
        (ProdaEvents.LOSSES_READY(once=3), 0),  # within an iteration
        (ProdaEvents.OPTIMIZER_STEPPED(once=3), 0),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_an_exception_saves_the_last_whole_iteration(event, saved, data, weights, tmp_path):
    more = {"checkpoint_every": 100, "adabn": True}
    with at(event, _fail), pytest.raises(ArithmeticError):
        train("warmup", data, weights, tmp_path, **more)
    assert [path.name for path in tmp_path.glob("checkpoint_*")] == ([f"checkpoint_{saved}.pt"] if saved else [])


@pytest.mark.parametrize("stage", ["source_only", "stage1_denoise"])
def test_a_run_that_an_exception_stopped_goes_on_with_the_same_bits(stage, data, weights, tmp_path, capsys):
    more = {"checkpoint_every": 100}
    with at(Events.ITERATION_COMPLETED(once=3), _fail), pytest.raises(ArithmeticError):
        train(stage, data, weights, tmp_path / "run", **more)
    for folder in ("run", "whole"):
        train(stage, data, weights, tmp_path / folder, resume=True, **more)
    assert f"resumed from {tmp_path / 'run/checkpoint_3.pt'}" in capsys.readouterr().out
    assert not differing(*(checkpoint(tmp_path / folder, 5) for folder in ("run", "whole")))


def test_the_end_is_saved_before_it_is_validated(data, weights, tmp_path):
    saved: list[bool] = []
    more = {"val_every": 1, "checkpoint_every": 100, "iterations": 2}
    with at(ProdaEvents.VALIDATED(once=2), lambda: saved.append((tmp_path / "checkpoint_2.pt").exists())):
        train("source_only", data, weights, tmp_path, **more)
    assert saved == [True]
