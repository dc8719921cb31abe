"""A user's experiment with its own handler, started from the command line."""

import json

import pytest

from proda.cli.launch import main, start
from proda.engines.events import ProdaEvents
from proda.utils.errors import UserError
from tests import small_runs

FILE = "tests/experiments/my_experiment.py"
ITERATION = [
    "source_losses_ready",
    "source_backward_done",
    "teacher_forward_done",
    "labels_rectified",
    "extra_losses",
    "target_ready",
    "losses_ready",
    "backward_done",
    "optimizer_stepped",
    "prototypes_updated",
]


@pytest.fixture(scope="module")
def summary(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("own")
    data, weights = small_runs.write_data(folder / "data"), small_runs.write_weights(folder / "before.pt")
    flags = small_runs.flags("stage1_denoise", data, weights, folder / "run", iterations=3, val_every=2)
    del flags["adabn"], flags["label_report_every"]  # flags that it does not have
    assert main([FILE, *(f"--{name}={value}" for name, value in flags.items())]) == 0
    return json.loads((folder / "run" / "summary.json").read_text())


def test_its_handler_sees_the_events_in_the_documented_order(summary):
    moments = summary["moments"]
    named = [moment for moment in moments if moment != "before_weights_used"]
    assert named == ["pseudo_labels_refreshed", *ITERATION * 2, "validated", *ITERATION, "validated"]
    before = [moments[i - 1] for i, moment in enumerate(moments) if moment == "validated"]
    assert before == ["before_weights_used"] * 2


def test_the_order_of_an_iteration_is_that_of_the_class_body():
    documented = [event.value for event in ProdaEvents]
    assert [moment for moment in documented if moment in ITERATION] == ITERATION


def test_its_handler_finds_the_tensors_of_each_event(summary):
    assert len(summary["changed_labels"]) == 3 and all(0 <= share <= 1 for share in summary["changed_labels"])
    assert max(summary["changed_labels"]) > 0


def test_its_flags_are_checked_and_explained_as_any_others(capsys):
    assert main([FILE, "--wieghts=x.pt"]) == 2
    assert "unknown flag --wieghts; the nearest is --weights" in capsys.readouterr().err
    assert main([FILE, "--help"]) == 0
    assert "first student, first teacher" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("feature_distance", 0.1, "--feature_distance: this experiment does not call attach_successors"),
        ("decay_power", 1.0, "--decay_power=1.0: the schedule of this experiment has 0.9"),
        ("warmup_iterations", 2, "it should be PolynomialDecay\\(..., warmup=config.warmup_iterations\\)"),
    ],
)
def test_a_flag_that_an_experiment_does_not_pass_on_is_refused(flag, value, message, data, weights, tmp_path):
    values = small_runs.flags("stage1_denoise", data, weights, tmp_path / "run", **{flag: value})
    del values["adabn"], values["label_report_every"]  # flags that it does not have
    with pytest.raises(UserError, match=message):
        start(FILE, values)
