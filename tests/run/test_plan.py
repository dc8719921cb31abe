import pytest
import torch
from ignite.engine import Events

from proda.cli.launch import load_experiment, main, start
from proda.data.labels import class_names
from proda.models.build import build_network
from proda.models.weights import save_weights
from proda.run import fit, plan
from proda.settings.reading import make_config
from tests import small_runs
from tests.run.test_made_up import SIZES, settings
from tests.run.test_memory import memory_of


def test_a_plan_is_printed_and_nothing_is_written(data, tmp_path, capsys):
    before = sorted(data.rglob("*"))
    flags = small_runs.flags("stage1_denoise", data, tmp_path / "missing.pt", tmp_path / "run", adabn=False)
    assert main(["stage1_denoise", "--plan", *(f"--{name}={value}" for name, value in flags.items())]) == 0
    assert not (tmp_path / "run").exists() and sorted(data.rglob("*")) == before
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    found = {line[:24].strip(): line[24:] for line in lines}
    assert found["iterations"] == "5, 2.5 epochs of 2"
    assert found["validations"] == "3 of 5 images"
    assert found["global batch"] == "4 images of each domain"
    assert "in training" in found["memory of a process"]
    assert found["11 GB"].startswith("as it is")
    assert found["an iteration"].endswith("mean of 2")
    assert "in all" in found


def test_the_figures_are_returned(data, tmp_path):
    flags = small_runs.flags("source_only", data, tmp_path / "missing.pt", tmp_path / "run", plan=True)
    result = start("source_only", flags)
    assert result["iterations"] == 5
    assert result["timing"].iteration > 0 and result["timing"].validation > 0
    assert result["memory"].peak > sum(result["memory"].networks.values())


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"data_root": "nowhere"}, "nowhere"),
        ({"nproc_per_node": 3}, "--batch_size=4 cannot be split evenly over 3 processes"),
        ({"accumulate": 3}, "--accumulate=3: each process has 4 images of a batch"),
        ({"batch_size": 64}, "--batch_size=64 exceeds the 8 training images"),
        ({"mean_width": 20}, "--mean_width=20"),
    ],
)
def test_a_run_that_could_not_start_has_no_plan(flags, message, data, tmp_path, capsys):
    values = small_runs.flags("warmup", data, tmp_path / "missing.pt", tmp_path / "run", plan=True, **flags)
    assert main(["warmup", *(f"--{name}={value}" for name, value in values.items())]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_only_the_first_process_prints(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    flags = small_runs.flags("source_only", data, tmp_path / "missing.pt", tmp_path / "run", plan=True)
    assert start("source_only", flags) == {}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "flag, environment, expected",
    [
        (0, {}, 1),
        (4, {}, 4),
        (0, {"RANK": "0", "WORLD_SIZE": "8"}, 8),
        (0, {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, 2),
        (0, {"SLURM_NTASKS": "2"}, 1),  # within an allocation, but not started by srun
    ],
)
def test_number_of_processes(flag, environment, expected):
    assert plan.number_of_processes(settings("source_only", nproc_per_node=flag), environment) == expected


def test_a_large_batch_is_measured_with_one_image_on_a_cpu(monkeypatch):
    config, build, cpu = settings("source_only"), load_experiment("source_only").build, torch.device("cpu")
    assert plan.measure(config, build, SIZES, cpu, memory_of(training=3)).images == 1
    monkeypatch.setattr(plan, "machine_memory", lambda _: 1024)
    refused = plan.measure(config, build, SIZES, cpu, memory_of(training=1))
    assert refused == "it takes 1.0 GB of memory; this machine has 0 MB"


def test_a_slow_iteration_is_measured_once(monkeypatch):
    monkeypatch.setattr(plan, "SLOW", 0.0)
    calls = []
    seconds, repeats = plan._seconds(lambda: calls.append(1), torch.device("cpu"))
    assert (len(calls), repeats) == (1, 1) and seconds > 0


def test_validations_of_a_plan_are_those_of_a_run(data, weights, tmp_path, monkeypatch):
    seen, train = [], fit._train

    def counted(job, stage, common, start):
        common.validation.evaluators[""].add_event_handler(Events.STARTED, lambda: seen.append(1))
        return train(job, stage, common, start)

    monkeypatch.setattr(fit, "_train", counted)
    flags, module = small_runs.flags("source_only", data, weights, tmp_path / "run"), load_experiment("source_only")
    start("source_only", flags)
    config = make_config(module.Config, flags)
    assert plan._validations(config, plan.list_data(config, module.build, 1)) == len(seen) == 3


def test_the_architecture_of_a_teacher_is_that_of_its_file(data, tmp_path):
    module = load_experiment("stage2_distill")
    save_weights(tmp_path / "teacher.pt", build_network("tiny", 13, head="daformer"), class_names=class_names(13))
    flags = small_runs.flags("stage2_distill", data, tmp_path / "teacher.pt", tmp_path / "run")
    listing = plan.list_data(make_config(module.Config, flags), module.build, 1)
    assert listing.sizes.teachers == {"teacher": ("tiny", "daformer")}
    assert plan.label_bytes(listing) > 0
