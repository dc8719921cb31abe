"""What every training run has: its checks before anything is written, the order of its handlers, its first lines."""

from dataclasses import replace
from functools import wraps
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from proda.cli.launch import load_experiment, main
from proda.data.loaders import TrainingBatches
from proda.engines.events import Trainer
from proda.engines.supervised import supervised_trainer
from proda.handlers.checkpoints import Checkpoints, NewestFiles
from proda.handlers.kept_models import KeptModels
from proda.handlers.label_quality import LabelQuality
from proda.handlers.nan import StopOnNan
from proda.handlers.prototypes import PrototypeEMA
from proda.handlers.schedule import ClipGradients
from proda.handlers.statistics import AdaBN
from proda.handlers.teacher import EMATeacher
from proda.handlers.validation import Validation
from proda.models.model_info import ModelInfo
from proda.run import fit
from proda.run.domains import Domains
from proda.run.job import Job
from proda.settings.reading import make_config
from proda.utils.errors import UserError
from tests import small_runs, tiny
from tests.tiny import PRECISION

# Bad input. Nothing is written.

ADAPT = tuple(stage for stage in small_runs.STAGES if stage != "source_only")
WITH_LABELS = ("stage1_denoise", "stage2_distill", "stage3_distill")
# What is wrong -> its flags, words of the error, and the stages.
BAD_INPUT = {
    "an unknown flag": ({"dta_root": "x"}, "unknown flag --dta_root", small_runs.STAGES),
    "a value out of bounds": ({"crop_width": 1}, "--crop_width=1: expected", small_runs.STAGES),
    "flags that exclude each other": ({"resume": True, "overwrite": True}, "--resume and --overwrite", ADAPT),
    "no data": ({"data_root": "nowhere"}, "nowhere", small_runs.STAGES),
    "no weights": ({}, "absent.pt: no such file", small_runs.STAGES),
    "weights that are none": ({}, "text.pt", small_runs.STAGES),
    "weights of other classes": ({"num_classes": 16}, "found weights for 13 classes, expected 16", small_runs.STAGES),
    "a batch that is too large": ({"batch_size": 9}, "--batch_size=9 exceeds the 8 training images", small_runs.STAGES),
    "a crop that is too large": ({"crop_width": 400}, "400", small_runs.STAGES),
    "unequal micro-batches": ({"accumulate": 3}, "--accumulate=3", small_runs.STAGES),
    "a class that there is not": ({"feature_distance": 1, "thing_classes": "unicorn"}, "'unicorn'", small_runs.STAGES),
    "an output that is a file": ({"output": "text.pt/run"}, "is a file; expected a folder", small_runs.STAGES),
    "labels that are a file": ({"pseudo_labels": "text.pt"}, "--pseudo_labels=text.pt", WITH_LABELS),
    "labels of something else": ({"pseudo_labels": "data"}, "data: holds files but no manifest.json", WITH_LABELS),
    "prototypes that are a folder": ({"prototypes": "."}, "--prototypes=.: this is a folder", WITH_LABELS[:1]),
    "prototypes that are none": ({"prototypes": "text.pt"}, "text.pt", WITH_LABELS[:1]),
    "a threshold of three decimals": ({"threshold": 0.955}, "--threshold=0.955: expected a mult", WITH_LABELS[1:]),
    "no SimCLR weights": ({"init": "simclr", "init_file": ""}, "--init=simclr needs --init_file", ("stage2_distill",)),
}


def arguments(stage: str, weights: str = "before.pt", **more: object) -> list[str]:
    flags = {**small_runs.flags(stage, Path("data"), Path(weights), Path("run")), **more}
    return [stage, *(f"--{name}={value}" for name, value in flags.items())]


@pytest.fixture
def files(data, weights, tmp_path, monkeypatch) -> list[Path]:
    """The files of a folder that is the working folder now."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PRODA_DATA", raising=False)
    Path("data").symlink_to(data)
    Path("before.pt").symlink_to(weights)
    Path("text.pt").write_text("hello")
    return sorted(Path().rglob("*"))


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_bad_input_is_one_line_and_nothing_is_written(kind, files, data, capsys):
    flags, words, stages = BAD_INPUT[kind]
    weights = {"no weights": "absent.pt", "weights that are none": "text.pt"}.get(kind, "before.pt")
    of_data = sorted(data.rglob("*"))
    for stage in stages:
        assert main(arguments(stage, weights, **flags)) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and words in error, (stage, error)
        assert not Path("run").exists() and sorted(Path().rglob("*")) == files, stage
    assert sorted(data.rglob("*")) == of_data


@pytest.mark.parametrize("stage", small_runs.STAGES)
def test_nothing_is_written_before_the_folder_is_claimed(stage, files, monkeypatch):
    def refuse(*_: object) -> None:
        raise UserError("another command uses the folder")

    monkeypatch.setattr(Job, "open", refuse)
    assert main(arguments(stage)) == 2
    assert not Path("run").exists() and sorted(Path().rglob("*")) == files


@pytest.mark.parametrize("stage", WITH_LABELS[:2])
def test_an_overwrite_that_is_refused_deletes_nothing(stage, files, capsys):
    assert main(arguments(stage, iterations=1)) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    assert Path("run/pseudo_labels/manifest.json") in before
    for wrong in ({"accumulate": 3}, {"feature_distance": 1, "thing_classes": "unicorn"}, {"data_root": "nowhere"}):
        assert main(arguments(stage, **{"overwrite": True, "iterations": 1, **wrong})) == 2
        assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == before


# Order


def test_prototypes_move_before_the_teacher_and_the_iteration_is_saved_before_and_after_its_validation(
    tmp_path, monkeypatch
):
    order = []
    moments = [(PrototypeEMA, "__call__"), (EMATeacher, "copy_buffers"), (StopOnNan, "__call__")]
    moments += [(NewestFiles, "__call__"), (Validation, "__call__"), (AdaBN, "__call__"), (NewestFiles, "__call__")]

    def noted(cls: type, method: str):
        original = getattr(cls, method)

        @wraps(original)
        def note(self, *args, **settings):
            order.append(cls)
            return original(self, *args, **settings)

        return note

    for cls, method in dict.fromkeys(moments):
        monkeypatch.setattr(cls, method, noted(cls, method))
    data, weights = small_runs.write_data(tmp_path / "data"), small_runs.write_weights(tmp_path / "before.pt")
    small_runs.train("stage1_denoise", data, weights, tmp_path / "run", iterations=2, val_every=1, checkpoint_every=1)
    assert order[: 2 * len(moments)] == [cls for cls, _ in moments] * 2


@pytest.mark.parametrize(
    "attach",
    [
        lambda trainer, _: StopOnNan().attach(trainer),
        lambda trainer, folder: Checkpoints(folder).attach(trainer, every=1),
        lambda trainer, _: LabelQuality(["road"]).attach(trainer, every=1),
        lambda trainer, _: LabelQuality(["road"]).attach(trainer, every=0),
    ],
    ids=["StopOnNan", "Checkpoints", "LabelQuality", "LabelQuality that never reports"],
)
def test_what_an_iteration_is_saved_with_comes_before_its_validation(attach, tmp_path):
    attach(trainer := Trainer(lambda *_: {}), tmp_path)
    validation(trainer)
    with pytest.raises(ValueError, match="before Validation"):
        attach(trainer, tmp_path)


def test_models_are_kept_after_the_validation(tmp_path):
    trainer = Trainer(lambda *_: {})
    models = KeptModels(Validation(Trainer(lambda *_: {}), [], ["road"]), tiny.network(), ModelInfo(), tmp_path)
    with pytest.raises(ValueError, match="KeptModels after Validation"):
        models.attach(trainer)
    validation(trainer)
    models.attach(trainer)


def validation(trainer: Trainer) -> None:
    Validation(Trainer(lambda *_: {}), [], ["road"]).attach(trainer, every=1)


@pytest.mark.parametrize(("largest", "clipped"), [(0.01, True), (1e6, False), (0.0, False)])
def test_gradients_are_clipped_to_their_largest_norm_between_backward_and_step(largest, clipped):
    norms = {}
    for limit in (0.0, largest):
        network = tiny.network(dropout=0.0)
        trainer = supervised_trainer(network, tiny.sgd(network), PRECISION)
        ClipGradients(network, limit).attach(trainer)
        torch.manual_seed(0)
        trainer.run([tiny.batch()])
        norms[limit] = torch.stack([p.grad.norm() for p in network.parameters()]).norm().item()
    assert norms[largest] == pytest.approx(0.01 if clipped else norms[0.0], rel=1e-3)
    assert norms[0.0] > 0.01


# Length, and the first lines


@pytest.mark.parametrize(("iterations", "length"), [(0, (2, 6)), (7, (2, 7))])
def test_the_incomplete_last_batch_of_an_epoch_is_dropped(iterations, length):
    batches = TrainingBatches(range(20), range(11), batch_size=4, epochs=3, iterations=iterations)
    assert (batches.epoch_length, batches.iterations) == length


@pytest.mark.parametrize(("source", "target", "short"), [(3, 8, "source"), (8, 3, "target")])
def test_images_that_make_no_batch_are_refused(source, target, short):
    with pytest.raises(UserError, match=f"--batch_size=4 exceeds the 3 training images of the {short}"):
        TrainingBatches(range(source), range(target), batch_size=4, epochs=1)


@pytest.mark.parametrize(
    ("processes", "flags", "line", "words"),
    [
        (1, {"batch_size": 4}, "batch norm", ""),
        (2, {"batch_size": 4}, "batch norm", "number of processes"),
        (2, {"freeze_bn": True, "adabn": False}, "batch norm", ""),
        (1, {"batch_size": 4}, "global batch", ""),
        (1, {"batch_size": 8}, "global batch", "WARNING: the recipe uses 4"),
        (1, {"schedule_iterations": 1}, "learning rate", "WARNING: 0 from iteration 1 on (--schedule_iterations)"),
        (1, {"schedule_iterations": 90_000}, "learning rate", ""),
        (1, {"warmup_iterations": 4}, "learning rate", "WARNING: not reached before the end, as --warmup_iterations=4"),
        (1, {"warmup_iterations": 1}, "learning rate", ""),
    ],
)
def test_the_summary_warns_of_what_changes_a_result_unnoticed(monkeypatch, processes, flags, line, words):
    module = load_experiment("stage1_denoise")
    config = make_config(module.Config, {"preset": "streets", **flags}, module.PRESETS)
    domains = SimpleNamespace(own_target=None, skip_lines=dict)
    data = SimpleNamespace(domains=domains, classes=SimpleNamespace(names=["road"]))
    batches = TrainingBatches(range(8), range(8), batch_size=4, epochs=2)
    monkeypatch.setattr(fit.idist, "get_world_size", lambda: processes)
    found = fit.summary_lines(config, data, batches).get(line, "")
    assert words in found if words else "WARNING" not in found and "number of processes" not in found


def test_the_summary_counts_the_images_that_skip_bad_leaves_out(tmp_path):
    data = small_runs.write_data(tmp_path / "data")
    listed = tmp_path / "bad.txt"
    listed.write_text("source/00001\nsource/00002\nval/00001\ntrain/aachen_misspelt\nwrong/00001\nnowhere\n")
    module = load_experiment("experiments/stage1_denoise.py")
    config = make_config(module.Config, {"data_root": str(data), "num_classes": 13, "skip_bad": str(listed)}, {})
    assert Domains(replace(config, skip_bad="")).skip_lines() == {}
    lines = Domains(config).skip_lines()["skipped images"]
    assert lines.startswith("2 of source, 0 of train, 0 of val  WARNING: lines of the list that match no image: 4, ")
    assert lines.endswith("the first is val/00001")
