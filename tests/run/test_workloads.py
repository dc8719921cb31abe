import warnings
from dataclasses import dataclass, replace
from typing import Any

import pytest
from ignite.engine import Events
from proda.run.workloads import Sizes, batches, stage_kind, workload
from torch import Tensor
from torch.utils._pytree import tree_map

from proda.cli.launch import load_experiment
from proda.engines.distill import DistillOptions
from proda.engines.events import ProdaEvents
from proda.engines.optimization import Precision
from proda.run import fit
from proda.run.config import RunConfig, TrainConfig
from proda.settings.reading import make_config
from proda.utils.errors import UserError
from tests import small_runs

STAGES = (*small_runs.STAGES, "pretrain")
SIZES = Sizes(13, (48, 96), (48, 96), 4)  # those of tests/small_runs.py


def config(stage: str, **more: Any) -> Any:
    flags = small_runs.flags(stage, "no data", "no weights.pt", "no output", **more)
    return make_config(load_experiment(stage).Config, flags)


def described(batch: Any) -> Any:
    """Shapes and types in place of values."""

    def of(value: Any) -> Any:
        return (tuple(value.shape), value.dtype, value.stride()) if isinstance(value, Tensor) else type(value)

    return tree_map(of, batch)


class StopRun(Exception):  # noqa: N818  it is no error
    """Ends a run in its first iteration."""


@pytest.mark.parametrize("stage", STAGES)
def test_batches_are_like_those_of_the_stage(stage, data, weights, tmp_path, monkeypatch):
    seen, run = {}, fit.run

    def watched(job, trainer, loaded, checkpoints, validation, *others):
        @trainer.on(Events.ITERATION_STARTED)
        def note(engine):
            seen["training"] = described(engine.state.batch)
            seen["validation"] = described(next(iter(validation.batches)))
            raise StopRun

        return run(job, trainer, loaded, checkpoints, validation, *others)

    monkeypatch.setattr(fit, "run", watched)
    with pytest.raises(StopRun):
        small_runs.train(stage, data, weights, tmp_path / "run", iterations=1)
    made_up = batches(config(stage), SIZES)
    assert [described(batch) for batch in made_up] == [seen["training"], seen["validation"]]


@pytest.mark.parametrize("stage", STAGES)
def test_an_iteration_runs_and_steps(stage):
    settings = config(stage)
    work = workload(settings, SIZES, Precision("cpu"), *batches(settings, SIZES))
    before = {name: value.clone() for name, value in work.networks["student"].state_dict().items()}
    steps = []
    work.trainer.add_event_handler(ProdaEvents.OPTIMIZER_STEPPED, lambda: steps.append(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work.trainer.run([work.batch])
    assert steps == [1]
    assert work.trainer.state.output["loss"].isfinite()
    assert any(not value.equal(before[name]) for name, value in work.networks["student"].state_dict().items())


def test_networks_are_those_of_the_stage(data, weights, tmp_path, monkeypatch):
    made = {}

    def watched(job, trainer, *others):
        made["real"] = described(trainer.state.remembered["student"].state_dict())
        made["names"] = set(trainer.state.remembered)
        raise StopRun

    monkeypatch.setattr(fit, "run", watched)
    with pytest.raises(StopRun):
        small_runs.train("stage1_denoise", data, weights, tmp_path / "run")
    settings = config("stage1_denoise")
    work = workload(settings, SIZES, Precision("cpu"), *batches(settings, SIZES))
    assert described(work.networks["student"].state_dict()) == made["real"]
    assert set(work.trainer.state.remembered) <= made["names"]
    assert {"student", "optimizer", "teacher", "prototypes"} <= set(work.trainer.state.remembered)


def test_flags_reach_the_workload():
    settings = config("stage2_distill", accumulate=2, checkpoint_activations=True, freeze_bn=True, adabn=False)
    work = workload(settings, SIZES, Precision("cpu"), *batches(settings, SIZES))
    assert work.networks["student"].checkpoint_activations
    parts = []
    work.trainer.add_event_handler(ProdaEvents.LOSSES_READY, lambda: parts.append(1))
    work.trainer.run([work.batch])
    assert parts == [1, 1]
    assert not any(module.training for name, module in work.networks["student"].named_modules() if "bn" in name)


def test_an_own_experiment_needs_only_the_options_of_the_trainer():
    @dataclass
    class Own(DistillOptions, TrainConfig):
        pass

    settings = replace(Own(backbone="tiny"), mean_width=96, crop_width=48, crop_height=24)
    assert stage_kind(settings) is DistillOptions
    workload(settings, SIZES, Precision("cpu"), *batches(settings, SIZES))
    with pytest.raises(UserError, match="RunConfig has no options of a trainer"):
        stage_kind(RunConfig())
