"""Pretraining gives the same answer on one and on two processes, in float64; see ``test_world_size_invariance``."""

import json
import sys

import pytest

from tests import small_runs
from tests.distributed.test_world_size_invariance import ITERATIONS, _assert_same_state, _assert_well, _launch, _losses


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict:
    """Number of processes -> folder of the run."""
    folder = tmp_path_factory.mktemp("runs")
    data = small_runs.write_data(folder / "data")
    weights = small_runs.write_weights(folder / "before.pt")  # the record of a run has a score of some network
    inputs = {"data_root": str(data), "weights": str(weights), "device": "cpu", "stages": "pretrain"}
    runs = {number: folder / str(number) for number in (1, 2)}
    for number, output in runs.items():
        output.mkdir()
        _assert_well(_launch([sys.executable], output, inputs, **({"nproc_per_node": 2} if number == 2 else {})))
    return runs


def test_losses_of_every_iteration_agree(runs):
    expected, found = (_losses(runs[number] / "pretrain") for number in (1, 2))
    assert set(expected) == set(found) == {"train/loss", "train/loss_image", "train/loss_region"}
    for name, points in expected.items():
        assert len(points) == ITERATIONS and found[name] == pytest.approx(points, rel=1e-6), name


def test_network_and_optimizer_agree(runs):
    _assert_same_state(runs[2] / "pretrain", runs[1] / "pretrain")


def test_scores_of_images_that_do_not_divide_evenly_agree(runs):
    one, two = (json.loads((runs[number] / "pretrain/summary.json").read_text()) for number in (1, 2))
    for name in ("contrastive_loss", "image_accuracy", "region_accuracy", "alignment", "uniformity"):
        assert two[name] == pytest.approx(one[name], rel=1e-9), name


def test_gradients_are_exchanged_once_an_iteration(runs):
    for rank in range(2):
        record = json.loads((runs[2] / f"record_{rank}_of_2.json").read_text())
        assert record["pretrain"]["exchanges"] == {"ContrastiveNetwork": ITERATIONS}
