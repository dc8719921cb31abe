"""A stage on made-up data is the stage of a run: its batches, its networks, its iteration."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Events
from torch import Tensor
from torch.utils._pytree import tree_map

from proda.cli.launch import load_experiment, main
from proda.engines.events import ProdaEvents
from proda.engines.optimization import Precision
from proda.models.network import SegmentationNetwork
from proda.run import fit
from proda.run.data import whole_images
from proda.run.made_up import MadeUpImages, Sizes, made_up_stage, training_batch
from proda.run.networks import Networks
from proda.run.stage import Stage
from proda.settings.reading import make_config
from tests import small_runs

SIZES = Sizes(13, (48, 96), (48, 96), 4)  # those of tests/small_runs.py


def settings(stage: str, **more: Any) -> Any:
    """The settings of a small run, whose files do not exist."""
    flags = small_runs.flags(stage, Path("no data"), Path("no weights.pt"), Path("no output"), **more)
    return make_config(load_experiment(stage).Config, flags)


def made_up(stage: str, **more: Any) -> tuple[Stage, Networks]:
    return made_up_stage(settings(stage, **more), load_experiment(stage).build, SIZES, Precision("cpu"))


def described(content: Any) -> Any:
    """Shapes, dtypes and strides in place of values."""

    def of(value: Any) -> Any:
        return (tuple(value.shape), value.dtype, value.stride()) if isinstance(value, Tensor) else type(value)

    return tree_map(of, content)


class EndOfTest(Exception):  # noqa: N818  it is no error
    """Ends a run in its first iteration."""


@pytest.mark.parametrize("stage", small_runs.STAGES)
def test_batches_and_networks_are_like_those_of_the_stage(stage, data, weights, tmp_path, monkeypatch):
    seen: dict[str, Any] = {}
    train = fit._train

    def watched(job: Any, real: Stage, common: fit.CommonHandlers, start: int) -> Any:
        parts = real.trainer.state.remembered
        seen["parts"] = {name: described(parts[name].state_dict()) for name in parts}

        @real.trainer.on(Events.ITERATION_STARTED)
        def note(engine: Any) -> None:
            seen["training"], seen["validation"] = engine.state.batch, next(iter(common.validation.batches))
            raise EndOfTest

        return train(job, real, common, start)

    monkeypatch.setattr(fit, "_train", watched)
    with pytest.raises(EndOfTest):
        small_runs.train(stage, data, weights, tmp_path / "run", iterations=1)
    # of networks with the weights of a file, only the file says whether they have the extra batch norm
    found, _ = made_up(stage, **({"bn_pretrain": False} if stage in ("stage2_distill", "stage3_distill") else {}))
    assert described(training_batch(found)) == described(seen["training"])
    images = whole_images(settings(stage), MadeUpImages(SIZES.validation_image, SIZES.num_classes, 2))
    assert described(next(iter(images))) == described(seen["validation"])
    parts = {name: described(part.state_dict()) for name, part in found.trainer.state.remembered.items()}
    assert {"student", "optimizer"} <= parts.keys() <= seen["parts"].keys()
    assert parts["student"] == seen["parts"]["student"]


@pytest.mark.parametrize("stage", small_runs.STAGES)
def test_an_iteration_runs_and_steps(stage):
    found, networks = made_up(stage)
    assert found.student in networks.made.values() and isinstance(found.student, SegmentationNetwork)
    before = {name: value.clone() for name, value in found.student.state_dict().items()}
    steps = []
    found.trainer.add_event_handler(ProdaEvents.OPTIMIZER_STEPPED, lambda: steps.append(1))
    found.trainer._process_function(found.trainer, training_batch(found))
    assert steps == [1] and found.trainer.state.output["loss"].isfinite()
    assert any(not value.equal(before[name]) for name, value in found.student.state_dict().items())


def test_flags_reach_the_made_up_stage():
    found, networks = made_up("stage2_distill", accumulate=2, checkpoint_activations=True, freeze_bn=True, adabn=False)
    assert all(network.checkpoint_activations for network in networks.made.values())
    micro_batches = []
    found.trainer.add_event_handler(ProdaEvents.LOSSES_READY, lambda: micro_batches.append(1))
    found.trainer._process_function(found.trainer, training_batch(found))
    assert micro_batches == [1, 1]
    assert not any(module.training for name, module in found.student.named_modules() if "bn" in name)


def test_frozen_networks_have_the_architectures_that_are_given():
    config, build = settings("stage2_distill"), load_experiment("stage2_distill").build
    sizes = SIZES._replace(teachers={"teacher": ("resnet50", "deeplab")})
    _, networks = made_up_stage(replace(config, crop_width=32), build, sizes, Precision("cpu"))
    assert networks.made["teacher"].num_features != networks.made["student"].num_features


def test_a_stage_file_of_a_users_own_has_a_plan(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["copy", "stage1_denoise", "mine.py"]) == 0
    flags = small_runs.flags("stage1_denoise", data, Path("missing.pt"), Path("run"), plan=True)
    assert main(["mine.py", *(f"--{name}={value}" for name, value in flags.items())]) == 0
    out = capsys.readouterr().out
    assert "mine; nothing is written" in out and "an iteration" in out and not Path("run").exists()
    text = Path("mine.py").read_text().replace("def build(", "def make(").replace("fit(config, build)", "{}")
    Path("other.py").write_text(text)
    assert main(["other.py", "--plan"]) == 2
    assert "other.py has no build(config, data, networks)" in capsys.readouterr().err
