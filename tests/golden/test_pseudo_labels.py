"""Stored soft and hard pseudo labels (case 12), from the image to the file and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from proda.data.label_store import Manifest, open_store
from proda.data.labels import class_names, palette
from proda.engines.inference import predict
from proda.engines.labelling import write_pseudo_labels
from proda.engines.optimization import Precision
from proda.models.deeplab import DeepLab
from tests.golden.arrays import GoldenArrays, assert_golden
from tests.golden.recipe import fill

GOLDEN = GoldenArrays("pseudo_labels.npz")
CPU = torch.device("cpu")
NAMES = ["first", "second"]


@pytest.fixture(scope="module")
def network() -> DeepLab:
    return fill(DeepLab(19, blocks=(1, 1, 1, 1))).eval()


def batches() -> list[dict]:
    return [{"image": GOLDEN["image_uint8"], "name": NAMES}]


def written(folder, kind: str, network: DeepLab, *, flip: bool = False):
    store = open_store(folder, kind, Manifest(19, "w", {}, NAMES), palette=palette(19))
    write_pseudo_labels(store, network, batches(), Precision(CPU), class_names=class_names(19), flip=flip)
    return [store.read(name) for name in NAMES]


def test_soft_labels(tmp_path, network):
    with torch.no_grad():
        probabilities = network(GOLDEN["image_uint8"].float() / 255).logits.softmax(1)
    assert_golden("soft labels", probabilities, GOLDEN["soft_labels"], atol=1e-4)
    stored = torch.stack(written(tmp_path, "soft", network))
    assert_golden("soft labels, stored in ten bits", stored, GOLDEN["soft_labels"], atol=2.1e-3)
    assert torch.equal(stored.argmax(1), GOLDEN["soft_labels"].argmax(1))


def test_hard_labels_averaged_over_the_mirror_image(tmp_path, network):
    with torch.no_grad():
        image = GOLDEN["image_uint8"].float() / 255
        confidence = predict(network, image, (64, 128), flip=True, softmax_first=True).amax(1)
    expected = GOLDEN["confidence"].float()
    assert_golden("confidence of hard labels", confidence, expected, atol=1e-4, rtol=2**-11)  # stored as float16
    labels, stored = map(torch.stack, zip(*written(tmp_path, "hard", network, flip=True), strict=True))
    assert (labels != GOLDEN["pseudo_labels"]).sum() <= 4  # ties within rounding
    assert_golden("confidence, stored in levels", stored, expected, atol=5.5e-3)
    # what the store promises: the same pixels pass every threshold that is a multiple of 0.01
    for threshold in (0.1, 0.2, 0.5, 0.95):
        assert ((stored > threshold) != (confidence > threshold)).sum() == 0


def test_the_stored_picture_has_the_reference_colours(tmp_path, network):
    written(tmp_path, "hard", network, flip=True)
    for name, colour in zip(NAMES, GOLDEN["color"], strict=True):
        picture = torch.from_numpy(np.array(Image.open(tmp_path / "labels" / f"{name}.png").convert("RGB")))
        assert (picture != colour).any(-1).sum() <= 4


def test_without_the_mirror_image_labels_come_from_the_image_alone_not_from_raw_logits_at_stride_8(tmp_path, network):
    """The released code stores the largest *logit* as confidence then, which passes any threshold: not followed."""
    with torch.no_grad():
        logits = network(GOLDEN["image_uint8"].float() / 255).logits
    assert_golden(
        "the released code's largest logits",
        logits.amax(1),
        GOLDEN["no_flip_confidence_stride8"].float(),
        atol=1e-3,
        rtol=2**-11,
    )
    assert (logits.argmax(1) != GOLDEN["no_flip_labels_stride8"]).sum() <= 1
    labels, confidence = map(torch.stack, zip(*written(tmp_path, "hard", network), strict=True))
    assert labels.shape == (2, 64, 128) and confidence.max() <= 1
    upsampled = torch.nn.functional.interpolate(logits.softmax(1), (64, 128), mode="bilinear", align_corners=True)
    assert (labels != upsampled.argmax(1)).sum() <= 4


def test_every_array_was_read(pytestconfig):
    GOLDEN.assert_all_used(pytestconfig)
