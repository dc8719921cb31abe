import pytest
import torch
from torch import nn

from proda.models.build import build_network
from proda.models.deeplab import DeepLab
from proda.models.pretrained import backbone_content, load_imagenet, load_simclr
from proda.models.weights import load_weights
from proda.utils.errors import MissingFileError, UserError


def network(num_classes: int = 19, **settings) -> DeepLab:
    return DeepLab(num_classes, blocks=(1, 1, 1, 1), width=2, head_channels=16, **settings)


def backbone(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value for key, value in model.state_dict().items() if not key.startswith("layer5")}


def test_imagenet_weights_fill_the_backbone_and_leave_the_head(tmp_path):
    theirs, model, path = network(), network(bn_pretrain=True), tmp_path / "resnet.pth"
    nn.init.constant_(theirs.layer4[0].bn3.running_mean, 3.0)
    torch.save(backbone(theirs) | {"fc.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)}, path)
    head = model.layer5.head[1].weight.clone()
    assert "102 of the backbone's 102 tensors loaded, 2 left over" in load_imagenet(model, path)
    for key, value in backbone(theirs).items():
        assert torch.equal(model.state_dict()[key], value), key
    assert torch.equal(model.layer5.head[1].weight, head)


def test_imagenet_weights_of_before_batch_counters_load(tmp_path):
    theirs = {key: value for key, value in backbone(network()).items() if not key.endswith("num_batches_tracked")}
    torch.save(theirs, tmp_path / "resnet.pth")
    assert "85 of the backbone's 102 tensors loaded, 0 left over" in load_imagenet(network(), tmp_path / "resnet.pth")


def test_imagenet_weights_of_another_depth_are_refused(tmp_path):
    torch.save(backbone(network()), tmp_path / "resnet.pth")
    deeper = DeepLab(19, blocks=(1, 2, 1, 1), width=2, head_channels=16)
    with pytest.raises(
        ValueError, match=r"expected by the backbone; first only in the backbone: layer2.1.conv1.weight"
    ):
        load_imagenet(deeper, tmp_path / "resnet.pth")


def test_imagenet_weights_come_from_the_download_cache(tmp_path, monkeypatch):
    theirs, model = network(), network()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    model.backbone = "resnet101"  # a stand-in of the right name, small enough to write
    cached = tmp_path / "checkpoints" / "resnet101-63fe2227.pth"
    cached.parent.mkdir()
    torch.save(backbone(theirs), cached)
    assert str(cached) in load_imagenet(model)
    assert torch.equal(model.conv1.weight, theirs.conv1.weight)


@pytest.mark.parametrize(("name", "file"), [("resnet101", "resnet101-63fe2227"), ("resnet50", "resnet50-0676ba61")])
def test_imagenet_weights_that_cannot_be_fetched_are_an_error_never_random(tmp_path, monkeypatch, name, file):
    def offline(url: str, *_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with torch.device("meta"):
        model = build_network(name, 19)
    with pytest.raises(MissingFileError, match=f"{file}.pth is not there .*no route to host.*give a local file"):
        load_imagenet(model)


def test_network_without_imagenet_weights_says_so():
    with pytest.raises(UserError, match=r"^--backbone=tiny has no ImageNet weights; there are resnet101, .* and timm:"):
        load_imagenet(build_network("tiny", 3))


def test_simclr_checkpoint_fills_the_backbone_from_its_state_dict(tmp_path):
    theirs, model, path = network(), network(), tmp_path / "r101_1x_sk0.pth"
    torch.save({"state_dict": backbone(theirs) | {"fc.weight": torch.ones(2, 2)}, "epoch": 800}, path)
    assert "102 of the backbone's 102 tensors loaded, 1 left over" in load_simclr(model, path)
    assert torch.equal(model.layer4[0].conv3.weight, theirs.layer4[0].conv3.weight)


@pytest.mark.parametrize("names", ["torchvision", "converter"])
def test_simclr_file_of_the_converter_fills_every_tensor(tmp_path, names):
    """``{"resnet": ..., "head": ...}``; the names of SimCLRv2-Pytorch are written out from its module tree."""
    theirs, path = DeepLab(3, blocks=(2, 1, 1, 3), width=2, head_channels=16), tmp_path / "r101_1x_sk0.pth"
    for value in theirs.state_dict().values():
        value.copy_(torch.randn(value.shape) if value.is_floating_point() else 5 * torch.ones_like(value))
    model = DeepLab(3, blocks=(2, 1, 1, 3), width=2, head_channels=16)
    content = backbone(theirs)
    if names == "converter":
        content = {converter_name(key): value for key, value in content.items()}
        assert content.keys().isdisjoint(backbone(theirs))
    content |= {"fc.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)}
    torch.save({"resnet": content, "head": {"layers.0.weight": torch.ones(2, 2)}}, path)
    size = len(backbone(model))
    assert f"{size} of the backbone's {size} tensors loaded, 2 left over" in load_simclr(model, path)
    for key, value in backbone(theirs).items():
        assert torch.equal(model.state_dict()[key], value), key


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


def test_simclr_network_with_selective_kernels_is_named(tmp_path):
    path = tmp_path / "r101_1x_sk1.pth"
    torch.save({"resnet": {"net.1.blocks.0.net.2.mixing_conv.0.weight": torch.ones(1)}, "head": {}}, path)
    with pytest.raises(UserError, match=r"found a ResNet with selective kernels \(sk1\), expected one without \(sk0\)"):
        load_simclr(network(), path)


def test_simclr_file_of_another_layout_or_with_other_keys_is_refused(tmp_path):
    path = tmp_path / "r101_1x_sk0.pth"
    torch.save({"model": {}}, path)
    with pytest.raises(
        UserError, match=r"found a dict with 'model', expected a SimCLR checkpoint with 'state_dict' or"
    ):
        load_simclr(network(), path)
    torch.save({"state_dict": {"net.0.weight": torch.ones(1)}}, path)
    with pytest.raises(UserError, match=r"found 0 of the 102 .*file: net.0.weight; first only in the backbone: conv1"):
        load_simclr(network(), path)


def test_a_backbone_of_our_own_pretraining_is_read_and_leaves_the_head(tmp_path):
    theirs, model, path = build_network("tiny", 1), build_network("tiny", 13, bn_pretrain=True), tmp_path / "last.pt"
    head = {key: value.clone() for key, value in model.state_dict().items() if key.startswith(("layer5", "bn_pre"))}
    torch.save(backbone_content(theirs, iteration=7), path)
    assert "0 left over" in load_simclr(model, path)
    for key, value in backbone(theirs).items():
        assert torch.equal(model.state_dict()[key], value), key
    assert all(torch.equal(model.state_dict()[key], value) for key, value in head.items())


def test_a_backbone_of_another_network_or_of_a_newer_version_is_named(tmp_path):
    path = tmp_path / "last.pt"
    torch.save(backbone_content(build_network("tiny", 1)), path)
    with torch.device("meta"):
        model = build_network("resnet50", 19)
    with pytest.raises(UserError, match=r"last.pt: found weights of --backbone=tiny, expected --backbone=resnet50$"):
        load_simclr(model, path)
    torch.save({**backbone_content(build_network("tiny", 1)), "format": 99}, path)
    with pytest.raises(UserError, match=r"last.pt: written by a newer version of proda"):
        load_simclr(build_network("tiny", 1), path)


def test_a_backbone_is_no_whole_network(tmp_path):
    torch.save(backbone_content(build_network("tiny", 1)), tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"found a pretrained backbone without a head.*--init=simclr and --init_file"):
        load_weights(tmp_path / "last.pt")
