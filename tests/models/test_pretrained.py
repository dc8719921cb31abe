"""Weights that fill the backbone of a network."""

import pytest
import torch
from torch import nn
from torchvision import models

from proda.models.build import build_network
from proda.models.deeplab import DeepLab
from proda.models.pretrained import load_imagenet, load_simclr
from proda.utils.errors import MissingFileError, UserError


def network(num_classes: int = 19, **settings) -> DeepLab:
    return DeepLab(num_classes, **{"blocks": (2, 1, 1, 1), "width": 2, "head_channels": 16} | settings)


def backbone(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value for key, value in model.state_dict().items() if not key.startswith(("layer5", "bn_pre"))}


def randomised(model: nn.Module) -> nn.Module:
    for value in model.state_dict().values():
        value.copy_(torch.randn(value.shape) if value.is_floating_point() else 5 * torch.ones_like(value))
    return model


def converter_name(key: str) -> str:
    """SimCLRv2-Pytorch: ``net`` is the stem (convolution, batch norm with activation, pooling) and four stages.

    A block's ``net`` is convolution, batch norm, convolution, batch norm, convolution, batch norm; every batch norm is
    the first of a sequence with its activation. The first block's ``projection`` is ``shortcut`` and ``bn``.
    """
    module, tensor = key.rsplit(".", 1)
    if module in ("conv1", "bn1"):
        return f"net.0.{'0' if module == 'conv1' else '1.0'}.{tensor}"
    layer, block, part = module.split(".", 2)
    inner = {"downsample.0": "projection.shortcut", "downsample.1": "projection.bn.0"}.get(part)
    if inner is None:
        position = 2 * int(part[-1]) - 2
        inner = f"net.{position}" if part.startswith("conv") else f"net.{position + 1}.0"
    return f"net.{layer[-1]}.blocks.{block}.{inner}.{tensor}"


def of_converter(state: dict) -> dict:
    renamed = {converter_name(key): value for key, value in state.items()}
    assert renamed.keys().isdisjoint(state)
    return {"resnet": renamed | CLASSIFIER, "head": {"layers.0.weight": torch.ones(2, 2)}}


CLASSIFIER = {"fc.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)}


@pytest.mark.parametrize(
    ("load", "content"),
    [
        (load_imagenet, lambda state: state | CLASSIFIER),
        (load_imagenet, lambda state: {"state_dict": state | CLASSIFIER}),
        (load_simclr, lambda state: {"state_dict": state | CLASSIFIER, "epoch": 800}),  # which the released code reads
        (load_simclr, of_converter),
    ],
    ids=["imagenet", "imagenet entry", "simclr", "converter"],
)
def test_a_file_fills_every_tensor_of_the_backbone_and_leaves_the_head(tmp_path, load, content):
    theirs, model, path = randomised(network()), network(bn_pretrain=True), tmp_path / "resnet.pth"
    torch.save(content(backbone(theirs)), path)
    before = {key: value.clone() for key, value in model.state_dict().items() if key not in backbone(model)}
    size = len(backbone(model))
    assert f"{size} of the backbone's {size} tensors loaded, 2 left over" in load(model, path)
    for key, value in (backbone(theirs) | before).items():
        assert torch.equal(model.state_dict()[key], value), key


def test_imagenet_weights_of_before_batch_counters_load(tmp_path):
    theirs = {key: value for key, value in backbone(network()).items() if not key.endswith("num_batches_tracked")}
    torch.save(theirs, tmp_path / "resnet.pth")
    line = load_imagenet(network(), tmp_path / "resnet.pth")
    assert f"{len(theirs)} of the backbone's {len(backbone(network()))} tensors loaded, 0 left over" in line


def test_imagenet_weights_come_from_the_download_cache(tmp_path, monkeypatch):
    theirs, model = network(), network()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    model.backbone = "resnet101"  # a stand-in of the right name, small enough to write
    cached = tmp_path / "checkpoints" / "resnet101-63fe2227.pth"
    cached.parent.mkdir()
    torch.save(backbone(theirs), cached)
    assert str(cached) in load_imagenet(model)
    assert torch.equal(model.conv1.weight, theirs.conv1.weight)


@pytest.mark.parametrize(
    ("name", "file"),
    [("resnet101", "resnet101-63fe2227"), ("resnet50", "resnet50-0676ba61"), ("convnext_tiny", r"convnext_tiny-\w+")],
)
def test_imagenet_weights_that_cannot_be_fetched_are_an_error_never_random(tmp_path, monkeypatch, name, file):
    def offline(url: str, *_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with torch.device("meta"):
        model = build_network(name, 19)
    with pytest.raises(MissingFileError, match=f"{file}.pth is not there .*no route to host"):
        load_imagenet(model)


def test_network_without_imagenet_weights_says_so():
    with pytest.raises(UserError, match=r"^--backbone=tiny has no ImageNet weights; there are resnet101, .* and timm:"):
        load_imagenet(build_network("tiny", 3))


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_v2_t"])
def test_torchvisions_weights_fill_the_encoder_and_all_of_it(name, tmp_path):
    whole, model = randomised(getattr(models, name)(weights=None)), build_network(name, 3, head="daformer")
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    head = model.decoder.head[1].weight.clone()
    number = len(model.encoder.state_dict())
    assert f"{number} of the backbone's {number} tensors loaded" in load_imagenet(model, tmp_path / "weights.pth")
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in model.encoder.state_dict().items())
    assert torch.equal(model.decoder.head[1].weight, head)


@pytest.mark.parametrize(
    ("load", "content", "model", "words"),
    [
        (load_imagenet, backbone(network()), "deeper", "by the backbone; first only in the backbone: layer2.1.conv1"),
        (load_imagenet, {"conv1.weight": torch.ones(1)}, "convnext_tiny", "found 0 of the .*backbone; .*conv1"),
        (load_simclr, {"model": {}}, "resnet", "a dict with 'model', expected a SimCLR checkpoint"),
        (load_simclr, {"state_dict": {"net.0.weight": torch.ones(1)}}, "resnet", "found 0 of the .*file: net.0.weight"),
        (
            load_simclr,
            {"resnet": {"net.1.blocks.0.net.2.mixing_conv.0.weight": torch.ones(1)}, "head": {}},
            "resnet",
            r"selective kernels \(sk1\)",
        ),
        (load_simclr, {"state_dict": {"conv1.weight": torch.ones(1)}}, "convnext_tiny", "SimCLR weights of a ResNet"),
    ],
)
def test_weights_of_another_network_or_layout_are_refused(tmp_path, load, content, model, words):
    torch.save(content, tmp_path / "weights.pth")
    deeper = {"deeper": {"blocks": (2, 2, 1, 1)}, "resnet": {}}
    built = network(**deeper[model]) if model in deeper else build_network(model, 3)
    with pytest.raises(UserError, match=f"weights.pth: .*{words}"):
        load(built, tmp_path / "weights.pth")
