"""Curves from TensorBoard files."""

from pathlib import Path

import pytest
from tensorboardX import SummaryWriter

from proda.report.curves import Point, rates, read_curves, thinned
from proda.utils.errors import UserError
from tests import small_runs


def write(folder: Path, values: dict[int, float], **options) -> None:
    with SummaryWriter(str(folder), **options) as writer:
        for step, value in values.items():
            writer.add_scalar("train/loss", value, step)
            writer.add_text("note", "no scalar", step)


def values(folder: Path) -> dict[int, float]:
    return {point.step: point.value for point in read_curves(folder)["train/loss"]}


def test_a_resumed_run_hides_what_the_interrupted_one_wrote_after_its_checkpoint(tmp_path):
    write(tmp_path, {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0})
    write(tmp_path, {3: 30.0}, purge_step=3, filename_suffix=".2")
    assert values(tmp_path) == {1: 1.0, 2: 2.0, 3: 30.0}
    assert {"train/loss": values(tmp_path)} == small_runs.scalars(tmp_path)  # as TensorBoard shows them
    assert read_curves(tmp_path / "nowhere") == {}


def test_at_the_same_step_the_later_value_wins_and_values_that_are_not_finite_are_left_out(tmp_path):
    write(tmp_path, {1: 1.0, 2: 2.0}, filename_suffix=".b")
    write(tmp_path, {2: 20.0, 3: 30.0, 4: float("nan"), 5: float("inf")}, filename_suffix=".a")
    assert values(tmp_path) == {1: 1.0, 2: 20.0, 3: 30.0}


def test_a_record_that_was_not_finished_ends_the_file(tmp_path):
    write(tmp_path, {1: 1.0, 2: 2.0})
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    for length in range(len(content) - 60, len(content)):
        file.write_bytes(content[:length])
        assert values(tmp_path).keys() <= {1, 2} and values(tmp_path)[1] == 1.0


def test_a_file_of_something_else_is_named(tmp_path):
    file = tmp_path / "events.out.tfevents.1"
    file.write_bytes(b"\x04" + bytes(11) + b"\xff\xff\xff\xff" + bytes(4))
    with pytest.raises(UserError, match=r"events\.out\.tfevents\.1: damaged .*expected a TensorBoard file"):
        read_curves(tmp_path)


def test_rates_are_steps_per_second_and_a_long_curve_is_averaged_over_neighbours():
    curve = [Point(10, 0.0, 100.0), Point(20, 0.0, 102.0), Point(30, 0.0, 102.0), Point(40, 0.0, 107.0)]
    assert [(point.step, point.value) for point in rates(curve)] == [(20, 5.0), (40, 2.0)]
    curve = [Point(step, float(step), 0.0) for step in range(1, 6)]
    assert thinned(curve, 5) == curve
    assert [(point.step, point.value) for point in thinned(curve, 3)] == [(2, 1.5), (4, 3.5), (5, 5.0)]
