"""The same global batch and seed give the same answer on any number of processes.

Compared in float64, to nine digits: gradients are summed up in another order, and nothing else differs. In float32 the
same rounding decides now and then between two labels or two maxima, and the gradient jumps.
"""

import json
import sys
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests import small_runs
from tests.distributed.stages import CAP, EVERY, RESUMED

EXPERIMENT = "tests/distributed/stages.py"
ITERATIONS = 5


class Run(NamedTuple):
    """All stages in turn, and what each process has noted about its part."""

    folder: Path
    records: list[dict]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    weights = small_runs.write_weights(folder / "before.pt")
    return {"data_root": str(small_runs.write_data(folder / "data")), "weights": str(weights), "device": "cpu"}


@pytest.fixture(scope="module")
def one(inputs, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("by_1")
    _assert_well(_launch([sys.executable], folder, inputs))  # with one thread, as each of many
    return Run(folder, _records(folder, 1))


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def many(request, inputs, tmp_path_factory) -> Run:
    folder, number = tmp_path_factory.mktemp(f"by_{request.param}"), request.param
    _assert_well(_launch([sys.executable], folder, inputs, nproc_per_node=number, resumed=True))
    return Run(folder, _records(folder, number))


@pytest.fixture(params=EVERY)
def stage(request) -> str:
    return request.param


def test_losses_of_every_iteration_agree(one, many, stage):
    expected, found = _losses(one.folder / stage), _losses(many.folder / stage)
    assert expected and all(len(points) == ITERATIONS for points in expected.values())
    assert found.keys() == expected.keys()
    for name, points in expected.items():
        assert found[name] == pytest.approx(points, rel=1e-6), name  # float32 in the file


def test_student_teacher_optimizer_and_prototypes_agree_after_five_iterations(one, many, stage):
    _assert_same_state(many.folder / stage, one.folder / stage)


def test_training_moves_what_is_compared(one, inputs):
    before = torch.load(inputs["weights"], weights_only=True)["model"]["layer5.head.1.weight"]
    after = small_runs.checkpoint(one.folder / "stage1_denoise", ITERATIONS)
    initial = torch.load(one.folder / "stage1_denoise" / "prototypes.pt", weights_only=True)["prototypes"]
    assert (after["student"]["layer5.head.1.weight"] - before).abs().max() > 1e-3
    assert (after["teacher"]["layer5.head.1.weight"] - before).abs().max() > 1e-4
    assert (after["prototypes"]["prototypes"] - initial).abs().max() > 1e-4


def test_scores_of_the_trained_models_agree(one, many, stage):
    expected, found = (json.loads((run.folder / stage / "summary.json").read_text()) for run in (one, many))
    assert ("teacher_iou" in expected) == (stage.startswith("stage1_denoise") or stage == "online_self_training")
    for scores in {"iou", "teacher_iou"} & expected.keys():
        for name, iou in expected[scores].items():
            assert found[scores][name] == (pytest.approx(iou, abs=1e-12) if iou is not None else None), name


@pytest.mark.parametrize("stage", [name for name in EVERY if name not in ("source_only", "warmup")])
def test_what_is_seen_of_the_labels_agrees(one, many, stage):
    expected, found = (
        json.loads((run.folder / stage / "summary.json").read_text())["label_quality"] for run in (one, many)
    )
    assert len(expected["history"]) == 1 and expected["last"]["miou_labels"] > 0
    assert small_runs.numbers(found).keys() == small_runs.numbers(expected).keys()
    for name, number in small_runs.numbers(expected).items():
        assert small_runs.numbers(found)[name].item() == pytest.approx(number.item(), abs=2e-6), name  # rounded


def test_a_model_is_judged_the_same_to_the_last_pixel_where_images_do_not_divide_evenly(one, many):
    """Five validation images, each counted once: the records hold every entry of the confusion matrix."""
    confusion = one.records[0]["confusion"]
    assert sum(map(sum, confusion)) > 4 * 96 * 48
    assert [record["confusion"] for record in many.records] == [confusion] * len(many.records)


def test_gradients_are_exchanged_once_an_iteration(many, stage):
    expected = {"DeepLab": ITERATIONS} | ({"Discriminator": ITERATIONS} if stage == "warmup" else {})
    assert [record[stage]["exchanges"] for record in many.records] == [expected] * len(many.records)


@pytest.mark.parametrize("labelled", ["stage1_denoise", "stage2_distill", "stage3_distill"])
def test_every_pseudo_label_is_written_once_by_one_of_the_processes(one, many, labelled):
    shares = [record[labelled]["written"] for record in many.records]
    assert sorted(chain(*shares)) == sorted(one.records[0][labelled]["written"])
    assert {len(share) for share in shares} == {8 // len(shares)}


def test_initial_prototypes_agree_although_the_cap_makes_their_order_matter(one, many):
    expected, found = (
        torch.load(run.folder / "stage1_denoise" / "prototypes.pt", weights_only=True) for run in (one, many)
    )
    assert expected["counts"].max() == CAP and expected["prototypes"].any()
    assert found["counts"].tolist() == expected["counts"].tolist()
    torch.testing.assert_close(found["prototypes"], expected["prototypes"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("stage", RESUMED)
def test_a_run_resumes_exactly_and_saves_the_networks_that_were_validated(many, stage):
    """Also where batch norm learns and cannot be synchronised, as on CPUs. One process alone is asked to stop."""
    whole, cut = (many.folder / f"{stage} {name}" for name in ("whole", "cut"))
    assert small_runs.differing(small_runs.checkpoint(whole, ITERATIONS), small_runs.checkpoint(cut, ITERATIONS)) == []
    told, judged = json.loads((whole / "summary.json").read_text()), many.records[0]["judged"][stage]
    for name, scores in (("last.pt", "iou"), ("teacher.pt", "teacher_iou")):
        assert judged[name] == pytest.approx(told[scores], abs=1e-12, nan_ok=True), name


@pytest.mark.slow
def test_in_float32_little_differs(inputs, tmp_path):
    settings = {"double": False, "stages": "stage1_denoise"}
    for number, more in ((1, {}), (2, {"nproc_per_node": 2})):
        _assert_well(_launch([sys.executable], _made(tmp_path / str(number)), inputs, **settings, **more))
    one, two = (tmp_path / number / "stage1_denoise" for number in ("1", "2"))
    for name, points in _losses(one).items():
        assert _losses(two)[name] == pytest.approx(points, rel=1e-4, abs=1e-5), name
    _assert_same_state(two, one, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_in_bfloat16_the_losses_of_all_stages_are_close(inputs, tmp_path):
    for number, more in ((1, {}), (2, {"nproc_per_node": 2})):
        settings = {"double": False, "amp": "bf16", **more}
        _assert_well(_launch([sys.executable], _made(tmp_path / str(number)), inputs, **settings))
    for stage in small_runs.STAGES:
        one, two = (_losses(tmp_path / number / stage) for number in ("1", "2"))
        assert one and two.keys() == one.keys()
        for name, points in one.items():
            assert two[name] == pytest.approx(points, rel=0.03, abs=0.003), (stage, name)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["two nodes of torchrun", "tasks of SLURM"])
def test_processes_that_others_start_join_one_group(launcher, one, inputs, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1"]
    torchrun.append(f"--master_port={small_runs.free_port()}")
    job = {"SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "localhost"}
    job["SLURM_JOB_ID"] = str(small_runs.free_port())  # the port follows from its last digits
    processes = []
    for rank in range(2):
        words, environment = [*torchrun, f"--node_rank={rank}"], {}
        if launcher == "tasks of SLURM":
            words, environment = [], {**job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        process = _launch([sys.executable, *words], tmp_path, inputs, environment=environment, stages="stage1_denoise")
        processes.append(process)
    for process in processes:
        _assert_well(process)
    assert len(_records(tmp_path, 2)) == 2
    _assert_same_state(tmp_path / "stage1_denoise", one.folder / "stage1_denoise")


def _launch(python: list[str], output: Path, inputs: dict, *, environment: dict | None = None, **more):
    flags = {**inputs, "output": str(output), **more}
    arguments = [*python, "run.py", EXPERIMENT, *(f"--{name}={value}" for name, value in flags.items())]
    return small_runs.launch(arguments, env=environment or {})


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _assert_well(process) -> None:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out[-2000:] + err[-4000:]


def _records(folder: Path, number: int) -> list[dict]:
    return [json.loads((folder / f"record_{rank}_of_{number}.json").read_text()) for rank in range(number)]


def _losses(folder: Path) -> dict[str, dict[int, float]]:
    return {tag: points for tag, points in small_runs.scalars(folder).items() if tag.startswith("train/loss")}


def _assert_same_state(found: Path, expected: Path, *, rtol: float = 1e-10, atol: float = 1e-12) -> None:
    """Two checkpoints agree in everything, single momenta of the optimizer included."""
    many, one = (_numbers(folder) for folder in (found, expected))
    assert many.keys() == one.keys() and any(key.startswith(".student.") for key in one)
    assert any(key.endswith("momentum_buffer") for key in one)
    for key, value in one.items():
        if "momentum_buffer" in key and rtol > 1e-10:
            assert (many[key] - value).norm() < 0.1 * value.norm() + atol, key  # single ones jump with a label
            continue
        torch.testing.assert_close(
            many[key], value, rtol=rtol, atol=atol, msg=lambda text, key=key: f"{key}: {text}", equal_nan=True
        )


def _numbers(folder: Path) -> dict[str, torch.Tensor]:
    """All numbers of a checkpoint but the seconds that the run has taken."""
    content = small_runs.checkpoint(folder, ITERATIONS)
    del content["stopwatch"]
    return small_runs.numbers(content)
