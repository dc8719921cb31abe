from dataclasses import replace
from typing import Any

import pytest

from proda.cli.launch import load_experiment
from proda.engines.optimization import Precision
from proda.run import memory, plan
from proda.run.live_bytes import LiveBytes, tensor_bytes
from proda.run.made_up import made_up_stage, training_batch
from proda.run.memory import GB, Memory
from tests import small_runs
from tests.run.test_made_up import SIZES, settings


def counted(stage: str, processes: int = 1, **more: Any) -> Memory:
    return memory.stage_memory(replace(settings(stage), **more), load_experiment(stage).build, SIZES, processes)


def memory_of(**peaks: float) -> Memory:
    in_bytes = {phase: int(size * GB) for phase, size in peaks.items()}
    return Memory({"student": 0}, 0, 0, in_bytes, checkpoint=0, model=0, parameters={"student": 0})


@pytest.mark.parametrize("stage", small_runs.STAGES)
def test_the_counted_peak_is_that_of_a_real_iteration(stage):
    with LiveBytes() as count:
        made, _ = made_up_stage(settings(stage), load_experiment(stage).build, SIZES, Precision("cpu"))
        batch = training_batch(made)
        for _ in range(2):  # the first one gives the optimizers their state
            count.reset_peak()
            made.trainer._process_function(made.trainer, batch)
            made.trainer.state.output = made.trainer.state.batch = {}
    real = count.peak + tensor_bytes(batch)  # the loader makes its batches outside the count
    assert counted(stage).peaks["training"] == pytest.approx(real, rel=0.01)


@pytest.mark.parametrize("stage", ["warmup", "stage1_denoise"])
def test_files_have_the_counted_sizes(stage, data, weights, tmp_path):
    small_runs.train(stage, data, weights, tmp_path, iterations=2)
    assert (tmp_path / "checkpoint_2.pt").stat().st_size == pytest.approx(counted(stage).checkpoint, rel=0.15)
    assert (tmp_path / "last.pt").stat().st_size == pytest.approx(counted(stage).model, rel=0.15)


def test_flags_that_save_memory_do():
    flags: dict[str, Any] = {"mean_width": 192, "crop_width": 96, "crop_height": 48}
    peaks = []
    for more in ({}, {"amp": "bf16"}, {"checkpoint_activations": True}, {"accumulate": 4}):
        flags |= more
        peaks.append(counted("source_only", **flags).peaks["training"])
    assert peaks == sorted(peaks, reverse=True) and peaks[-1] < 0.5 * peaks[0]


def test_processes_add_the_copies_of_the_gradients():
    alone, one_of_two = (counted("source_only", processes) for processes in (1, 2))
    assert alone.gradients > 0
    assert one_of_two.gradients == 2 * alone.gradients
    assert one_of_two.peak == alone.peak + alone.gradients


def test_every_network_and_every_phase_is_counted():
    student, *others = counted("stage1_denoise", adabn=True).networks.values()
    assert counted("stage1_denoise").networks.keys() == {"student", "mean teacher", "--weights"}
    assert others == [student, student]
    assert counted("warmup").networks.keys() == {"student", "discriminator"}
    assert counted("stage2_distill", adabn=True).peaks.keys() == {"training", "validation", "pseudo labels", "AdaBN"}
    assert counted("source_only").peaks.keys() == {"training", "validation"}
    whole, half = (counted("online_self_training", val_batch_size=50, val_scale=scale) for scale in (1.0, 0.5))
    assert half.peaks["validation"] < 0.7 * whole.peaks["validation"]


def test_the_ladder_goes_from_the_smallest_change_to_the_largest():
    config, base = settings("stage2_distill"), memory_of(training=30, validation=1)
    rungs = list(memory.ladder(config, SIZES, base))
    assert rungs == [
        {},
        {"amp": "bf16"},
        {"amp": "bf16", "checkpoint_activations": True},
        {"amp": "bf16", "checkpoint_activations": True, "accumulate": 2},
        {"amp": "bf16", "checkpoint_activations": True, "accumulate": 4},
    ]
    already = replace(config, amp="fp16", checkpoint_activations=True, accumulate=2)
    assert list(memory.ladder(already, SIZES, base)) == [{}, {"accumulate": 4}]
    assert list(memory.ladder(config, SIZES._replace(images=1), base))[-1] == rungs[2]
    large = list(memory.ladder(config, SIZES, memory_of(training=1, validation=30)))
    assert large[1] == {"val_batch_size": 1} and all("val_batch_size" in rung for rung in large[2:])


def test_each_gpu_gets_the_first_flags_that_fit(monkeypatch):
    peaks = {("off", 1): 40.0, ("bf16", 1): 20.0, ("bf16", 2): 9.5}

    def fake(changed: Any, build: Any, sizes: Any, processes: int) -> Memory:
        return memory_of(training=peaks.get((changed.amp, changed.accumulate), 20))

    monkeypatch.setattr(memory, "stage_memory", fake)
    build: Any = None
    found = memory.fitting(settings("warmup"), build, SIZES, 1, memory_of(training=40))
    assert found[80][0] == {} and found[24][0] == {"amp": "bf16"}
    assert found[16][0] == {"amp": "bf16", "checkpoint_activations": True, "accumulate": 2}
    assert 11 not in found  # 9.5 GB with the allowance are 11.05 GB
    text = "\n".join(plan._fitting_lines(found))
    assert "  11 GB" in text and "none: use more GPUs" in text and "--accumulate" in text
