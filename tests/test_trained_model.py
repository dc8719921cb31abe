"""A trained network in a program of one's own."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import proda
from proda.data.labels import class_names
from proda.engines.inference import predict
from proda.method.tensors import resize
from proda.models.build import build_network
from proda.models.weights import load_network, save_weights
from proda.trained_model import as_tensor, load_model
from proda.utils.errors import MissingFileError
from tests import small_runs


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)


def test_two_lines_lead_from_a_weights_file_to_a_label_map(weights, picture):
    model = proda.load_model(weights, device="cpu")
    labels = model.predict(picture)
    assert labels.dtype == np.uint8 and labels.shape == (48, 96) and len(np.unique(labels)) > 1
    network = load_network(weights).eval()
    with torch.no_grad():
        image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        expected = predict(network, image, (48, 96))[0]
    assert np.array_equal(labels, expected.max(0).indices.numpy())
    assert np.allclose(model.probabilities(picture), expected.numpy(), atol=1e-6)


def test_every_kind_of_image_gives_the_same_labels(weights, picture, tmp_path):
    model = load_model(weights)
    Image.fromarray(picture).save(tmp_path / "a.png")
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    expected = model.predict(picture)
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(picture), tensor, tensor.float() / 255):
        assert np.array_equal(model.predict(image), expected)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert model.predict((tensor / 255).to(dtype)).shape == expected.shape
    averaged = model.probabilities(picture, flip=True, scales=(0.5, 1))
    assert averaged.shape == (13, 48, 96) and np.allclose(averaged.sum(0), 1, atol=1e-5)
    assert np.allclose(
        model.probabilities(picture[:, ::-1], flip=True)[..., ::-1], model.probabilities(picture, flip=True), atol=1e-4
    )


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_a_picture_of_16_bits_is_scaled_like_its_file(weights, picture, tmp_path, mode):
    file = tmp_path / ("grey.png" if mode == "I;16" else "grey.tif")
    grey = np.asarray(Image.fromarray(picture).convert("L")).astype(np.uint16 if mode == "I;16" else np.int32) * 257
    Image.fromarray(grey).save(file)
    with Image.open(file) as opened:
        assert opened.mode == mode
        assert torch.equal(as_tensor(opened), as_tensor(file)) and as_tensor(opened).unique().numel() > 10


@pytest.mark.parametrize(
    ("image", "scales", "message"),
    [
        (np.zeros((4, 4), np.uint8), (1,), r"uint8 and shape \(4, 4\), expected uint8 \[H, W, 3\]"),
        (np.zeros((4, 4, 3)), (1,), r"float64 and shape \(4, 4, 3\)"),
        (torch.zeros(1, 3, 8, 8), (1,), r"shape \[1, 3, 8, 8\]"),
        (torch.full((3, 8, 8), 255.0), (1,), "values from 255 to 255"),
        (7, (1,), "found int"),
        (np.zeros((0, 4, 3), np.uint8), (1,), "at least one pixel"),
        *((np.zeros((4, 4, 3), np.uint8), scales, "^scales=.*from 0.1 to 10$") for scales in ((), (0,), (1, 20))),
    ],
)
def test_what_is_no_image_or_scale_is_refused(weights, image, scales, message):
    with pytest.raises(ValueError, match=message):
        load_model(weights).predict(image, scales=scales)


def test_classes_are_those_of_the_file_or_of_the_benchmark_of_as_many(weights, tmp_path):
    model = load_model(weights)
    assert model.class_names == tuple(class_names(13)) and model.class_ids[:3].tolist() == [7, 8, 11]
    assert model.colors[0].tolist() == [128, 64, 128] and model.info.backbone == model.network.backbone == "tiny"
    torch.save({"ResNet101": {"model_state": build_network("tiny", 16).state_dict()}}, tmp_path / "released.pkl")
    assert load_model(tmp_path / "released.pkl").class_names == tuple(class_names(16))
    torch.save({"model": build_network("tiny", 3).state_dict()}, tmp_path / "three.pt")
    assert load_model(tmp_path / "three.pt").class_names == ("class 0", "class 1", "class 2")
    colors = ((1, 2, 3), (4, 5, 6))
    save_weights(tmp_path / "own.pt", build_network("tiny", 2), class_names=("road", "car"), colors=colors)
    own = load_model(tmp_path / "own.pt")
    assert own.class_names == ("road", "car") and own.colors.tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(MissingFileError, match=f"^{tmp_path}/nowhere.pt: no such file"):
        load_model(tmp_path / "nowhere.pt")


def test_images_are_resized_as_in_training_and_label_maps_are_of_the_images_size(weights, picture, tmp_path):
    network = load_network(weights)
    save_weights(tmp_path / "small.pt", network, class_names=class_names(13), size=(64, 32))
    assert load_model(tmp_path / "small.pt").predict(torch.zeros(3, 48, 96, dtype=torch.bfloat16)).shape == (48, 96)
    resized = Image.fromarray(picture).resize((64, 32), Image.Resampling.BILINEAR)
    with torch.no_grad():
        image = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None].float() / 255
        expected = resize(predict(network.eval(), image, (32, 64)), (48, 96)).max(1).indices[0]
    assert np.array_equal(load_model(tmp_path / "small.pt").predict(picture), expected.numpy())


def test_larger_images_are_predicted_in_tiles(weights, picture):
    whole, tiled = load_model(weights).probabilities(picture), load_model(weights, tile=64).probabilities(picture)
    assert tiled.shape == whole.shape and 0 < np.abs(tiled - whole).mean() < 0.1
    assert np.array_equal(load_model(weights, tile=96).probabilities(picture), whole)
    with pytest.raises(ValueError, match="tile=31, expected 0 or at least 32 pixels"):
        load_model(weights, tile=31)


def test_importing_the_package_imports_no_torch():
    code = "import sys, proda; assert 'torch' not in sys.modules; print(proda.__version__)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=small_runs.ROOT)
    with pytest.raises(AttributeError, match="has no attribute 'load_modell'"):
        proda.load_modell  # noqa: B018
