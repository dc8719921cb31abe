"""Exported files compute what the network computes, for every result, precision and size."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

from proda.export import formats
from proda.export.formats import FORMATS, require_packages
from proda.export.latency import compiled, measure_all
from proda.export.program import ImageProgram, metadata
from proda.export.verification import SIZES, compare, street_scenes, verify
from proda.models.model_info import ModelInfo
from proda.models.network import Segmentation, SegmentationNetwork
from proda.utils.errors import UserError

K = 3


class OneConvolution(SegmentationNetwork):
    """The smallest network with an output of another size than the image."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = self.num_features = K
        self.layer = nn.Conv2d(3, K, 5, stride=4, padding=2, bias=False)
        nn.init.normal_(self.layer.weight, std=0.5)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)

    def forward(self, image: Tensor) -> Segmentation:
        x = self.pool(self.layer(image))
        return Segmentation(x, x)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return OneConvolution()


@pytest.mark.parametrize(
    ("name", "result", "fp16"),
    [
        *(("onnx", result, False) for result in ("logits", "probabilities", "labels")),
        *(("pt2", result, True) for result in ("logits", "probabilities", "labels")),
        ("onnx", "logits", True),
        ("pt2", "logits", False),
    ],
)
def test_every_kind_of_file_agrees_with_the_network(network, name, result, fp16, tmp_path):
    program = ImageProgram(network, result, fp16=fp16)
    file = tmp_path / "not UTF-8 \udcff"
    FORMATS[name].write(program, file, {"class_names": ["a", "b", "c"], "output": "words"})
    run = FORMATS[name].open(file, "cpu")
    comparisons = verify(ImageProgram(network), run, program)
    assert [comparison.size for comparison in comparisons] == list(SIZES)
    assert {size[0] for size in SIZES} == {1, 2, 3} and any(size[1] % 2 and size[2] % 2 for size in SIZES)
    assert all(comparison.changed < (0.02 if fp16 else 0.001) for comparison in comparisons)
    images = street_scenes(1, 33, 47, seed=9)  # a size that was in no verification
    expected = program(images)
    found = run(images)
    assert found.dtype == expected.dtype == (torch.uint8 if result == "labels" else torch.float32)
    assert found.shape == ((1, 33, 47) if result == "labels" else (1, K, 33, 47))
    if result == "labels":
        assert (found == expected).float().mean() > 0.98
    else:
        torch.testing.assert_close(found, expected, atol=0.02 if fp16 else 1e-5, rtol=0)
    if fp16:
        exact = ImageProgram(network)(images)
        assert result != "logits" or 0 < (found - exact).abs().max() < 0.05  # it was really computed in half precision


def test_the_input_and_the_output_of_an_onnx_file_have_names_and_free_sides(network, tmp_path):
    import onnxruntime

    FORMATS["onnx"].write(
        ImageProgram(network, "probabilities"), tmp_path / "a.onnx", {"colors": [[1, 2, 3]], "x": "y"}
    )
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    (image,), (output,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape, image.type) == ("image", ["batch", 3, "height", "width"], "tensor(float)")
    assert (output.name, output.shape) == ("probabilities", ["batch", K, "height", "width"])
    found = session.get_modelmeta().custom_metadata_map
    assert json.loads(found["colors"]) == [[1, 2, 3]] and found["x"] == "y"
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]  # no second file for the weights


def test_the_export_leaves_the_network_as_it_was(network):
    network.train()
    ImageProgram(network, fp16=True)
    assert network.training and network.layer.weight.dtype == torch.float32 and network.layer.weight.requires_grad


def test_metadata_name_the_classes_and_where_they_come_from(network):
    info = ModelInfo(K, stage="warmup", iteration=7, size=(64, 32), class_names=("a", "b", "c"), label_ids=())
    found = metadata(ImageProgram(network, "labels", fp16=True), info, git_commit="abc")
    assert found["class_names"] == ["a", "b", "c"] and found["class_ids"] == [0, 1, 2] and len(found["colors"]) == K
    assert found["output"] == "labels: uint8 [B, H, W]" and found["precision"] == "float16"
    assert found["size"] == [64, 32] and found["git_commit"] == "abc"
    assert found["training"] == {"stage": "warmup", "iteration": 7}
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("change", [1.01, math.nan, math.inf])
def test_a_file_that_computes_something_else_is_refused(network, change):
    reference = ImageProgram(network)
    with pytest.raises(UserError, match=r"differs from the network by more than 0\.0001"):
        verify(reference, lambda images: reference(images) * change, reference)


def test_labels_may_differ_only_where_the_network_is_undecided(network):
    reference, images = ImageProgram(network), street_scenes(1, 32, 64)
    logits = reference(images)
    labels = logits.argmax(1).byte()
    assert compare(reference, lambda _: labels, "labels", images)[1:] == (0, 0)
    second = labels.clone()
    pixel = (0, 5, 7)
    best, runner_up = logits[0, :, 5, 7].topk(2)
    second[pixel] = runner_up[1]
    found = compare(reference, lambda _: second, "labels", images)
    assert found.difference == pytest.approx(((best[0] - best[1]) / logits.abs().max()).item())
    assert found.changed == pytest.approx(1 / (32 * 64))
    beyond = torch.full_like(labels, 200)
    assert compare(reference, lambda _: beyond, "labels", images).difference == math.inf


def test_another_shape_or_a_size_that_fails_is_named(network):
    reference = ImageProgram(network)
    with pytest.raises(UserError, match=r"\[1, 2, 128, 256\], expected torch.float32 \[1, 3,"):
        verify(reference, lambda images: reference(images)[:, :2], reference)

    def only_one_size(images):
        if images.shape[-1] != SIZES[0][2]:
            raise RuntimeError("expected 256\nand more")
        return reference(images)

    with pytest.raises(UserError, match=r"cannot compute 2 images of 131 x 97 pixels: RuntimeError: expected 256$"):
        verify(reference, only_one_size, reference)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    require_packages("onnx")
    monkeypatch.setitem(formats.importlib.sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r'--format=onnx: needs onnxscript.*pip install -e "\.\[export\]"$'):
        require_packages("onnx")
    require_packages("pt2")


def test_one_runtime_that_cannot_run_does_not_hide_the_others(network, monkeypatch):
    def broken():
        raise RuntimeError("no such device\nand more")

    monkeypatch.setenv("CXX", "no_compiler_of_this_name")
    program = ImageProgram(network)
    runtimes = {"a": broken, "b": lambda: program, "c": lambda: compiled(program, "cpu")}
    found = measure_all(runtimes, street_scenes(1, 16, 16))
    assert found["a"] == "RuntimeError: no such device"
    assert found["b"].milliseconds > 0 and found["b"].runs >= 3
    assert found["c"] == "torch.compile needs a C++ compiler, and none was found"
