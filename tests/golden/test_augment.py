"""Every array of augment_ops.npz: image operations of the strong view, and the values they are drawn with."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from proda.data.augment import OPERATIONS, ImageOperation, apply_operation, draw_strong_view, strong_view_of_image
from proda.method.views import StrongView

GOLDEN = np.load(Path(__file__).parent / "data" / "augment_ops.npz")
ENTRIES = json.loads(str(GOLDEN["metadata_json"]))
CUTOUTS = [entry for entry in ENTRIES if entry["operation"] == "Cutout"]
MOVES = [entry for entry in ENTRIES if entry["operation"] != "Cutout"]


def image() -> Image.Image:
    return Image.fromarray(GOLDEN["image"])


@pytest.fixture(scope="module")
def drawn_values() -> dict[str, set]:
    """Every value that each operation takes in many draws for images of the golden size."""
    rng, values = np.random.default_rng(0), defaultdict(set)
    for _ in range(2500):
        for operation in draw_strong_view(rng, GOLDEN["image"].shape[:2])[0]:
            values[operation.name].add(operation.value)
    return values


def test_every_golden_array_has_an_entry_and_every_operation_an_array():
    assert {entry["key"] for entry in ENTRIES} | {"image", "metadata_json"} == set(GOLDEN.files)
    assert {entry["operation"] for entry in MOVES} == set(OPERATIONS)


@pytest.mark.parametrize("entry", MOVES, ids=lambda entry: entry["key"])
def test_image_operation_equals_golden(entry):
    result = np.asarray(apply_operation(image(), ImageOperation(entry["operation"], entry["value"])))
    assert (result == GOLDEN[entry["key"]]).all()
    changed = (result != GOLDEN["image"]).any(-1).mean()
    assert changed == pytest.approx(entry["changed_fraction"])


@pytest.mark.parametrize("entry", MOVES, ids=lambda entry: entry["key"])
def test_golden_value_is_among_those_drawn(entry, drawn_values):
    values, golden = drawn_values[entry["operation"]], entry["value"]
    assert values == {None} if golden is None else any(value == pytest.approx(golden, abs=1e-12) for value in values)


@pytest.mark.parametrize("entry", CUTOUTS, ids=lambda entry: entry["key"])
def test_cutout_equals_golden(entry):
    box = entry["rectangle_x0_y0_x1_y1"]
    no_operations = torch.zeros(2, dtype=torch.int64), torch.zeros(2)
    view = StrongView(torch.tensor(False), *no_operations, torch.tensor(box))
    result = np.asarray(strong_view_of_image(image(), [], view))
    assert (result == GOLDEN[entry["key"]]).all()
    shown = np.asarray(strong_view_of_image(Image.new("RGB", image().size), [], view)).any(-1)
    assert shown.sum() == entry["filled_pixels"]


def test_cutouts_have_the_golden_side():
    rng = np.random.default_rng(0)
    boxes = [draw_strong_view(rng, GOLDEN["image"].shape[:2])[1].cutout for _ in range(200)]
    assert {entry["side"] for entry in CUTOUTS} == {max(int(box[2] - box[0]) for box in boxes)}
