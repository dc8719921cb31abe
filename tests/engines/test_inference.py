"""The evaluator and its scores."""

import math
import weakref

import pytest
import torch
from ignite.engine import Events
from torch import nn

from proda.engines.inference import predict, segmentation_evaluator
from proda.engines.optimization import Precision
from proda.method import IGNORE
from proda.method.tensors import resize, to_float
from proda.models.network import Segmentation
from tests import tiny
from tests.tiny import PRECISION


class Painted(nn.Module):
    """Predicts class 0 on the left half and 1 on the right, at half the size; ``sharpness`` sets the confidence."""

    num_classes = 3

    def __init__(self, sharpness: float = 50.0) -> None:
        super().__init__()
        self.sharpness = sharpness

    def forward(self, image: torch.Tensor) -> Segmentation:
        count, _, height, width = image.shape
        left = (torch.arange(width // 2) < width // 4).float().expand(count, height // 2, width // 2)
        logits = self.sharpness * torch.stack([left, 1 - left, torch.zeros_like(left) - 1], dim=1)
        return Segmentation(logits, logits)


def batch(labels: torch.Tensor) -> dict:
    return {"image": torch.zeros(len(labels), 3, 4, 8, dtype=torch.uint8), "labels": labels, "name": ["x"]}


def test_the_network_is_evaluated_without_gradient_in_evaluation_mode_and_its_modes_are_restored():
    network, seen = Painted().train(), []
    network.frozen = nn.Dropout().eval()
    network.register_forward_hook(lambda module, *_: seen.append((module.training, torch.is_grad_enabled())))
    evaluator = segmentation_evaluator(network, PRECISION)
    one = batch(torch.zeros(1, 4, 8, dtype=torch.uint8))
    evaluator.run([one])
    assert seen == [(False, False)] and network.training and not network.frozen.training
    evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: evaluator.terminate(skip_completed=True))
    evaluator.run([one] * 3)  # stopped after a batch
    assert evaluator.state.iteration == 1 and network.training and not network.frozen.training
    assert evaluator.state.output is None


def test_probabilities_that_are_resized_instead_of_logits_add_up_to_one_at_each_pixel():
    image, network = torch.zeros(1, 3, 4, 8), Painted(sharpness=2.0)
    result = predict(network, image, (8, 16), softmax_first=True)
    expected = resize(network(image).logits.softmax(1), (8, 16))
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(result.sum(1), torch.ones(1, 8, 16))
    assert (result - predict(network, image, (8, 16))).abs().max() > 1e-3


def test_no_output_is_kept_while_the_next_batch_is_predicted_nor_after_the_run():
    network, seen, kept = Painted(), [], []
    evaluator = segmentation_evaluator(network, PRECISION)
    evaluator.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: seen.append(weakref.ref(engine.state.output["logits"]))
    )
    network.register_forward_hook(lambda *_: kept.extend(reference() for reference in seen))
    evaluator.run([batch(torch.zeros(1, 4, 8, dtype=torch.uint8))] * 2)
    assert evaluator.state.output is None and evaluator.state.batch is None
    assert kept == [None] and [reference() for reference in seen] == [None, None]


class Noise(nn.Module):
    """Predicts noise that depends on the image, at half the size and, as real networks, in channels-last memory."""

    num_classes = 5

    def forward(self, image: torch.Tensor) -> Segmentation:
        seeds = torch.nn.functional.avg_pool2d(image, 2, ceil_mode=True).sum(1, keepdim=True)
        logits = 4 * (seeds * torch.arange(1, 6).view(1, -1, 1, 1) * 40).sin()
        return Segmentation(logits.to(memory_format=torch.channels_last), logits)


SETTINGS = [{}, {"flip": True}, {"scales": (0.5, 1.0, 1.5)}, {"scales": (0.5,)}, {"flip": True, "scales": (1.0, 2.0)}]


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_evaluator_scores_the_probabilities_that_predict_returns(settings, amp):
    labels = torch.randint(0, 5, (2, 13, 21), dtype=torch.uint8)
    labels[:, :3] = IGNORE
    image = torch.randint(0, 256, (2, 3, 13, 21), dtype=torch.uint8)
    network, precision, outputs = Noise(), Precision("cpu", amp), []
    evaluator = segmentation_evaluator(network, precision, **settings)
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: outputs.append(engine.state.output))
    metrics = evaluator.run([{"image": image, "labels": labels, "name": ["a", "b"]}]).metrics
    with precision.autocast():
        probabilities = predict(network, to_float(image), (13, 21), **settings)
    assert torch.equal(outputs[0]["predicted"], probabilities.argmax(1))
    torch.testing.assert_close(outputs[0]["logits"].softmax(1), probabilities)
    assert outputs[0]["logits"].dtype == torch.float32

    confusion = torch.zeros(5, 5, dtype=torch.int64)
    for true, found in zip(labels.flatten().tolist(), probabilities.argmax(1).flatten().tolist(), strict=True):
        if true != IGNORE:
            confusion[true, found] += 1
    assert torch.equal(metrics["confusion"], confusion)
    mean, entropy = probabilities.double().mean((0, 2, 3)), torch.special.entr(probabilities.double()).sum(1).mean()
    assert metrics["label_free"] == pytest.approx((torch.special.entr(mean).sum() - entropy).item(), abs=1e-6)


def test_predictions_at_several_scales_are_the_mean_of_those_at_each_one():
    network, image = Noise(), torch.rand(1, 3, 12, 20)
    parts = [predict(network, image, (12, 20), scales=(scale,)) for scale in (0.5, 1.0, 1.5)]
    torch.testing.assert_close(predict(network, image, (12, 20), scales=(0.5, 1.0, 1.5)), torch.stack(parts).mean(0))
    mirrored = predict(network, image.flip(-1), (12, 20)).flip(-1)
    torch.testing.assert_close(predict(network, image, (12, 20), flip=True), (parts[1] + mirrored) / 2)


def test_batches_without_labels_have_a_label_free_score_and_an_empty_confusion():
    metrics = segmentation_evaluator(Noise(), PRECISION).run([{"image": torch.ones(1, 3, 4, 8).byte()}]).metrics
    assert metrics["confusion"].sum() == 0 and math.isfinite(metrics["label_free"])


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (3, 1)])
@pytest.mark.parametrize("flip", [False, True])
def test_no_scale_makes_a_side_of_a_tiny_image_vanish(size, flip):
    network, image = tiny.network().eval(), torch.rand(1, 3, *size)
    for softmax_first in (False, True):
        found = predict(network, image, size, scales=(0.1, 0.5, 1.0), flip=flip, softmax_first=softmax_first)
        assert found.shape[-2:] == size
        torch.testing.assert_close(found.sum(1), torch.ones(1, *size))
