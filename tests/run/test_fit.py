"""What every training run shares: its length, the order of its handlers, clipping."""

from dataclasses import replace
from functools import wraps
from types import SimpleNamespace

import pytest
import torch

from proda.cli.launch import load_experiment
from proda.data.loaders import TrainingBatches
from proda.engines.supervised import supervised_trainer
from proda.handlers.checkpoints import NewestFiles
from proda.handlers.nan import StopOnNan
from proda.handlers.prototypes import PrototypeEMA
from proda.handlers.schedule import ClipGradients
from proda.handlers.statistics import AdaBN
from proda.handlers.teacher import EMATeacher
from proda.handlers.validation import Validation
from proda.run import fit
from proda.run.domains import Domains
from proda.settings.reading import make_config
from proda.utils.errors import UserError
from tests import small_runs, tiny
from tests.tiny import PRECISION


@pytest.mark.parametrize(("iterations", "length"), [(0, (2, 6)), (7, (2, 7))])
def test_the_incomplete_last_batch_of_an_epoch_is_dropped(iterations, length):
    batches = TrainingBatches(range(20), range(11), batch_size=4, epochs=3, iterations=iterations)
    assert (batches.epoch_length, batches.iterations) == length


@pytest.mark.parametrize(("source", "target", "short"), [(3, 8, "source"), (8, 3, "target")])
def test_images_that_make_no_batch_are_refused(source, target, short):
    with pytest.raises(UserError, match=f"--batch_size=4 exceeds the 3 training images of the {short}"):
        TrainingBatches(range(source), range(target), batch_size=4, epochs=1)


@pytest.mark.parametrize(
    ("processes", "flags", "told"),
    [(1, {}, False), (2, {}, True), (2, {"freeze_bn": True, "adabn": False}, False)],
    ids=["one process", "two", "two with frozen batch norm"],
)
def test_the_summary_says_where_batch_norm_depends_on_the_number_of_processes(monkeypatch, processes, flags, told):
    module = load_experiment("experiments/stage1_denoise.py")
    config = make_config(module.Config, {"preset": "streets", **flags}, module.PRESETS)
    data = SimpleNamespace(own_target=None, classes=SimpleNamespace(names=["road"]), skip_lines=dict)
    batches = TrainingBatches(range(8), range(8), batch_size=4, epochs=1)
    monkeypatch.setattr(fit.idist, "get_world_size", lambda: processes)
    lines = fit.summary_lines(config, data, batches)
    assert ("number of processes" in lines.get("batch norm", "")) == told


@pytest.mark.parametrize(
    ("experiment", "flags", "told"),
    [
        ("stage1_denoise", {"schedule_iterations": 1}, "WARNING: 0 from iteration 1 on (--schedule_iterations)"),
        ("stage1_denoise", {"schedule_iterations": 90_000}, ""),
        (
            "pretrain",
            {"warmup_iterations": 4},
            "WARNING: not reached before the end, as --warmup_iterations=4",
        ),
        ("pretrain", {"warmup_iterations": 1}, ""),
    ],
)
def test_the_summary_warns_where_the_learning_rate_is_zero_or_never_reached(experiment, flags, told):
    module = load_experiment(experiment)
    config = make_config(module.Config, flags, module.PRESETS)
    batches = TrainingBatches(range(8), range(8), batch_size=4, epochs=2)
    rate = fit.loop_lines(config, batches)["learning rate"]
    assert told in rate and ("WARNING" in rate) == bool(told)


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
