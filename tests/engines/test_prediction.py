"""Predictions of images of any size."""

import pytest
import torch
from ignite.engine import Events

from proda.data.label_store import Manifest, open_store
from proda.engines.inference import predict, segmentation_evaluator
from proda.engines.labelling import write_pseudo_labels
from proda.engines.prediction import prediction_engine, probability_rows
from proda.handlers.prototypes import Prototypes, initial_prototypes
from proda.method.tensors import resize, to_float
from proda.metrics import LabelFreeOfTerms
from tests import tiny
from tests.tiny import PRECISION, B, K


def batch(size=(48, 96), file_size=(48, 96)) -> dict:
    return {"image": tiny.pictures(*size), "name": ["a", "b"], "file_size": torch.tensor([file_size] * B)}


@pytest.mark.parametrize("options", [{}, {"flip": True, "scales": (0.5, 1.0)}])
def test_an_image_that_fits_into_a_tile_is_predicted_as_in_an_evaluation(options):
    network, found, expected = tiny.network().train(), {}, {}
    given = batch()
    engine = prediction_engine(network, PRECISION, tile=96, **options)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: found.update(engine.state.output))
    LabelFreeOfTerms(output_transform=lambda out: out["information"]).attach(engine, "label_free")
    evaluator = segmentation_evaluator(network, PRECISION, **options)
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: expected.update(engine.state.output))
    state, judged = engine.run([given]), evaluator.run([given])
    assert torch.equal(found["predicted"], expected["predicted"]) and found["predicted"].shape == (B, 48, 96)
    torch.testing.assert_close(found["confidence"], expected["logits"].softmax(1).max(1).values)
    assert state.metrics["label_free"] == pytest.approx(judged.metrics["label_free"], abs=1e-6)
    assert network.training


def test_tiles_give_the_probabilities_of_the_whole_image_apart_from_their_context():
    network = tiny.network().eval()
    image = to_float(tiny.pictures(48, 200))
    with torch.no_grad():
        rows = torch.cat(list(probability_rows(network, image, (48, 200), tile=64)), dim=2)
        whole = predict(network, image, (48, 200))
    assert rows.shape == whole.shape == (B, K, 48, 200)
    torch.testing.assert_close(rows.sum(1), torch.ones(B, 48, 200))
    assert (rows - whole).abs().mean() < 0.05


def test_predictions_of_a_resized_image_have_the_size_of_its_file():
    network, found = tiny.network().eval(), {}
    given = batch(file_size=(30, 70))
    engine = prediction_engine(network, PRECISION, tile=96)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: found.update(engine.state.output))
    engine.run([given])
    with torch.no_grad():
        expected = resize(predict(network, to_float(given["image"]), (48, 96)), (30, 70)).max(1)
    assert torch.equal(found["predicted"], expected.indices)
    torch.testing.assert_close(found["confidence"], expected.values)


class Overflowing(torch.nn.Module):
    """Predicts NaN, as a network that overflows in half precision, where an image is white."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.num_classes = tiny.network(), K

    def forward(self, image):
        result = self.inner(image)
        return result._replace(logits=result.logits.masked_fill((image == 1).all(), float("nan")))


@pytest.mark.parametrize("tile", [32, 2200])
def test_a_network_that_predicts_nan_is_no_prediction_of_class_0(tile):
    engine = prediction_engine(Overflowing(), PRECISION, tile=tile)
    black = {**batch(), "image": torch.zeros_like(batch()["image"])}
    engine.run([black])
    with pytest.raises(FloatingPointError, match=r"^the network predicts NaN for .*--amp=off"):
        engine.run([{**black, "image": torch.full_like(black["image"], 255)}])


def test_prototypes_and_pseudo_labels_of_nan_are_refused(tmp_path):
    network, white = Overflowing(), {"image": torch.full((1, 3, 48, 96), 255, dtype=torch.uint8), "name": ["white"]}
    with pytest.raises(FloatingPointError, match=r"^the network predicts NaN for white: "):
        initial_prototypes(Prototypes(K, tiny.D), network, [white], PRECISION)
    for kind in ("soft", "hard"):
        manifest = Manifest(K, "w", {}, ["white"])
        store = open_store(tmp_path / kind, kind, manifest)
        with pytest.raises(FloatingPointError, match=r"^the network predicts NaN for white: "):
            write_pseudo_labels(store, network, [white], PRECISION, class_names=[str(k) for k in range(K)])
        assert store.missing(["white"]) == ["white"]
