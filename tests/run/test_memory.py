from dataclasses import replace

import pytest

from proda.engines.optimization import Precision
from proda.run import memory, plan
from proda.run.live_bytes import LiveBytes, tensor_bytes
from proda.run.memory import GB, MARGIN
from proda.run.workloads import batches, workload
from tests import small_runs
from tests.run.test_plan import SIZES, STAGES, config, memory_of


@pytest.mark.parametrize("stage", STAGES)
def test_the_counted_peak_is_that_of_a_real_iteration(stage):
    settings = config(stage)
    counted = memory.stage_memory(settings, SIZES)
    made_up = batches(settings, SIZES)
    with LiveBytes() as count:
        work = workload(settings, SIZES, Precision("cpu"), *made_up)
        work.trainer.run([work.batch])  # gives the optimisers their state
        count.reset_peak()
        work.trainer.run([work.batch])
    real = count.peak + tensor_bytes(made_up)  # the batches were made before the count began
    assert counted.peaks["training"] == pytest.approx(real, rel=0.01)


@pytest.mark.parametrize("stage", ["warmup", "stage1_denoise"])
def test_files_have_the_counted_sizes(stage, data, weights, tmp_path):
    counted = memory.stage_memory(config(stage), SIZES)
    small_runs.train(stage, data, weights, tmp_path, iterations=2)
    assert (tmp_path / "checkpoint_2.pt").stat().st_size == pytest.approx(counted.checkpoint, rel=0.15)
    assert (tmp_path / "last.pt").stat().st_size == pytest.approx(counted.model, rel=0.15)


def test_flags_that_save_memory_do():
    settings = replace(config("source_only"), mean_width=192, crop_width=96, crop_height=48)
    peaks = []
    for changes in ({}, {"amp": "bf16"}, {"checkpoint_activations": True}, {"accumulate": 4}):
        settings = replace(settings, **changes)
        peaks.append(memory.stage_memory(settings, SIZES).peaks["training"])
    assert peaks == sorted(peaks, reverse=True) and peaks[-1] < 0.5 * peaks[0]


def test_processes_add_the_copies_of_the_gradients():
    alone, one_of_two = (memory.stage_memory(config("source_only"), SIZES, processes) for processes in (1, 2))
    assert alone.gradients > 0
    assert one_of_two.gradients == 2 * alone.gradients
    assert one_of_two.peak == alone.peak + alone.gradients


def test_the_ladder_goes_from_the_smallest_change_to_the_largest():
    settings, base = config("stage2_distill"), memory_of(training=30, validation=1)
    rungs = list(memory.ladder(settings, SIZES, base))
    assert rungs == [
        {},
        {"amp": "bf16"},
        {"amp": "bf16", "checkpoint_activations": True},
        {"amp": "bf16", "checkpoint_activations": True, "accumulate": 2},
        {"amp": "bf16", "checkpoint_activations": True, "accumulate": 4},
    ]
    already = replace(settings, amp="fp16", checkpoint_activations=True, accumulate=2)
    assert list(memory.ladder(already, SIZES, base)) == [{}, {"accumulate": 4}]
    assert list(memory.ladder(settings, SIZES._replace(images=1), base))[-1] == rungs[2]
    large = list(memory.ladder(settings, SIZES, memory_of(training=1, validation=30)))
    assert large[1] == {"val_batch_size": 1} and all("val_batch_size" in rung for rung in large[2:])
    assert [rung for rung in memory.ladder(config("pretrain"), SIZES, base)] == [{}, {"amp": "bf16"}]


def test_each_gpu_gets_the_first_flags_that_fit(monkeypatch):
    peaks = {("off", 1): 40.0, ("bf16", 1): 20.0, ("bf16", 2): 9.5}

    def counted(changed, sizes, processes):
        return memory_of(training=peaks.get((changed.amp, changed.accumulate), 20))

    monkeypatch.setattr(memory, "stage_memory", counted)
    found = memory.fitting(config("warmup"), SIZES, 1, memory_of(training=40))
    assert found[80][0] == {} and found[24][0] == {"amp": "bf16"}
    assert found[16][0] == {"amp": "bf16", "checkpoint_activations": True, "accumulate": 2}
    assert found[11][1].peak == 9.5 * GB if 11 in found else 9.5 * MARGIN + 0.6 > 11
    text = "\n".join(plan._fitting_lines(config("warmup"), found))
    assert "  11 GB" in text and "none: use more GPUs" in text and "--accumulate" in text
