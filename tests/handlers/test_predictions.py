"""Label maps and overlays on disk."""

import numpy as np
import torch
from ignite.engine import Engine
from PIL import Image

from proda.handlers.predictions import ClassShares, SaveConfidence, SaveOverlays, SavePredictions

LABELS = torch.tensor([[[0, 1], [2, 1]]])
COLORS = np.array([[10, 0, 0], [0, 20, 0], [0, 0, 30]], np.uint8)


def output(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of an evaluator that is sure of ``labels``, or of a prediction."""
    confidence = torch.tensor([[[0.0, 0.5], [0.5, 1.0]]])
    return {
        "predicted": labels,
        "confidence": confidence,
        "logits": torch.nn.functional.one_hot(labels).permute(0, 3, 1, 2).float().log(),
    }


def run(*handlers) -> None:
    evaluator = Engine(lambda engine, batch: output(LABELS))
    for handler in handlers:
        handler.attach(evaluator)
    image = torch.full((1, 3, 2, 2), 100, dtype=torch.uint8)
    evaluator.run([{"name": ["ulm_1"], "file_size": torch.tensor([[2, 2]]), "image": image}])


def test_predictions_are_written_as_the_ids_of_their_classes(tmp_path):
    run(SavePredictions(tmp_path, suffix="_pred_labelIds.png", ids=np.array([7, 8, 11], np.uint8)))
    written = Image.open(tmp_path / "ulm_1_pred_labelIds.png")
    assert written.mode == "L" and np.asarray(written).tolist() == [[7, 8], [11, 8]]


def test_predictions_with_a_palette_keep_the_class_numbers(tmp_path):
    run(SavePredictions(tmp_path / "a/b", colors=COLORS))
    written = Image.open(tmp_path / "a/b/ulm_1.png")
    assert np.asarray(written).tolist() == LABELS[0].tolist()
    assert np.asarray(written.convert("RGB"))[1, 0].tolist() == [0, 0, 30]


def test_an_overlay_mixes_image_and_colours(tmp_path):
    run(SaveOverlays(tmp_path / "a/b", np.full((3, 3), 200, np.uint8)))
    assert abs(np.asarray(Image.open(tmp_path / "a/b/ulm_1.jpg")).astype(int) - 150).max() <= 2


def test_a_label_map_has_the_size_of_the_photograph_whatever_size_the_network_saw(tmp_path):
    evaluator = Engine(lambda engine, batch: output(torch.tensor([[[0, 1]]])))
    SavePredictions(tmp_path).attach(evaluator)
    evaluator.run([{"name": ["a"], "file_size": torch.tensor([[2, 5]])}])
    # two columns to five with aligned corners: the classes change places in the middle
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[0, 0, 0, 1, 1]] * 2


def test_an_overlay_has_a_legend_of_the_classes_in_it(tmp_path):
    run(SaveOverlays(tmp_path, COLORS * 8, names=["road", "traffic_sign", "sky"]))
    written = np.asarray(Image.open(tmp_path / "ulm_1.jpg")).astype(int)
    assert written.shape[0] > 2 and written.shape[1] > 60
    for color in (COLORS * 8).astype(int):  # a patch of each class on white
        assert (np.abs(written[2:] - color).max(axis=2) < 40).sum() > 50
    few = Image.open(tmp_path / "ulm_1.jpg").height
    evaluator = Engine(lambda engine, batch: output(torch.zeros(1, 2, 2, dtype=torch.long)))
    SaveOverlays(tmp_path, COLORS, names=["road", "traffic_sign", "sky"]).attach(evaluator)
    image = torch.full((1, 3, 2, 2), 100, dtype=torch.uint8)
    evaluator.run([{"name": ["road"], "file_size": torch.tensor([[2, 2]]), "image": image}])
    assert Image.open(tmp_path / "road.jpg").height < few


def test_confidence_is_grey_and_shares_are_rows_of_a_table(tmp_path):
    (tmp_path / "shares.csv").write_text("of an earlier run")
    ClassShares(tmp_path / "shares.csv", []).attach(Engine(lambda *_: None))
    assert not (tmp_path / "shares.csv").exists()  # if this run is interrupted, there is no table
    run(SaveConfidence(tmp_path / "confidence"), ClassShares(tmp_path / "shares.csv", ["road", "car, red", "sky"]))
    assert np.asarray(Image.open(tmp_path / "confidence/ulm_1.png")).tolist() == [[0, 128], [128, 255]]
    assert (tmp_path / "shares.csv").read_text().splitlines() == [
        'name,width,height,confidence,road,"car, red",sky',
        "ulm_1,2,2,0.500000,0.250000,0.500000,0.250000",
    ]
