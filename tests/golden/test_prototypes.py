"""Class means, prototype updates, distances and rectification, against ``prototypes.npz`` (case 5)."""

import json

import pytest
import torch

from proda.method.prototypes import class_means, distances, prototype_weights, update_prototypes
from proda.method.pseudo_labels import confident_labels, hard_labels, rectify
from tests.golden.arrays import DATA, GoldenArrays, assert_golden

GOLDEN = GoldenArrays("prototypes.npz")
TRAINING = 0.0001
UPDATE_RULES = {
    "mean_from_zero": dict(momentum=None),
    "mean_at_cap": dict(momentum=None),
    "moving_average": dict(momentum=TRAINING),
    "moving_average_at_cap": dict(momentum=TRAINING),
    "moving_average_start_mean": dict(momentum=TRAINING, start_mean=100),
}


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("min_confidence", [0.0, 0.5])
def test_class_means_of_each_image(labelled, min_confidence):
    key = "_".join(["labelled"] * labelled + ["confidence0.5"] * (min_confidence > 0)) or "unlabelled"
    labels = GOLDEN["labels"] if labelled else None
    assert torch.equal(GOLDEN["logits"].argmax(1), GOLDEN["predicted_class"].long())
    means, present = class_means(GOLDEN["features"], GOLDEN["logits"], labels, min_confidence=min_confidence)
    images, classes = present.nonzero(as_tuple=True)  # image by image, classes ascending
    assert torch.equal(images, GOLDEN[f"{key}_image_ids"].long())
    assert torch.equal(classes, GOLDEN[f"{key}_class_ids"].long())
    assert_golden(f"class means, {key}", means[present], GOLDEN[f"{key}_mean_vectors"], atol=1e-5)
    assert not means[~present].any()


@pytest.mark.parametrize("variant", UPDATE_RULES)
def test_updates_one_at_a_time_and_all_at_once(variant):
    prototypes, counts = GOLDEN[f"update_{variant}_prototypes"], GOLDEN[f"update_{variant}_counts"]
    present = torch.nn.functional.one_hot(GOLDEN["update_class_ids"].long(), 4).bool()  # [10, 4]
    means = present.unsqueeze(2) * GOLDEN["update_vectors"].unsqueeze(1)  # [10, 4, 256]
    rule = UPDATE_RULES[variant]
    atol = 1e-5 if rule["momentum"] is None else 5e-7

    one_by_one, count = prototypes[0], counts[0]
    for n in range(10):
        one_by_one, count = update_prototypes(one_by_one, count, means[n : n + 1], present[n : n + 1], **rule)
        assert_golden(f"{variant}, one by one", one_by_one, prototypes[n + 1], atol=atol)
        assert torch.equal(count, counts[n + 1])

        at_once, count_at_once = update_prototypes(prototypes[0], counts[0], means[: n + 1], present[: n + 1], **rule)
        assert_golden(f"{variant}, at once", at_once, prototypes[n + 1], atol=atol)
        assert torch.equal(count_at_once, counts[n + 1])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_soft_labels_are_rectified_by_the_distances_to_the_prototypes(temperature):
    between = distances(GOLDEN["features"], GOLDEN["prototypes"])
    assert_golden("distances", between, GOLDEN["distances"], atol=1e-4)

    def assert_equal_to(key, actual):
        assert_golden(key, actual, GOLDEN[f"{key}_temperature{temperature}"], atol=1e-5, rtol=1e-4)

    weights = prototype_weights(between, temperature=temperature)
    assert_equal_to("weights", weights)
    assert_equal_to("rectified_unnormalised", weights * GOLDEN["soft_labels"])
    rectified = rectify(GOLDEN["soft_labels"], weights)
    assert_equal_to("rectified", rectified)
    for threshold in (0.0, 0.6):
        expected = GOLDEN[f"hard_labels_temperature{temperature}_threshold{threshold}"]
        assert torch.equal(hard_labels(rectified, threshold=threshold), expected.long())


def test_stored_labels_are_the_most_probable_classes():
    stored = GoldenArrays("pseudo_labels.npz")
    assert torch.equal(hard_labels(stored["soft_labels"]), stored["no_flip_labels_stride8"].long())


def test_confidence_thresholds_of_stored_pseudo_labels():
    golden = json.loads((DATA / "labels.json").read_text())["pseudo_label_threshold"]
    labels = torch.tensor(golden["labels"])
    stored = torch.tensor(golden["confidence_before_storage"]).half()
    assert stored.tolist() == golden["confidence_stored_float16"]
    for threshold, key in ((0.95, "0_95"), (-1, "default_minus_1"), (0, "0")):
        kept = confident_labels(labels, stored, threshold=threshold, as_released=True)
        assert kept.tolist() == golden[f"labels_threshold_{key}"]


def test_every_array_was_read(pytestconfig):
    GOLDEN.assert_all_used(pytestconfig)
