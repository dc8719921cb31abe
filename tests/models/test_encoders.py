"""Encoders of torchvision, and networks on encoders."""

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from proda.models.build import BUILDERS, build_network
from proda.models.encoder_decoder import EncoderDecoder, on_encoder
from proda.models.encoders import DEVIATION, MEAN, TORCHVISION, Encoder, TorchvisionEncoder
from proda.models.network import freeze_batch_norm
from proda.models.pretrained import backbone_content, load_imagenet, load_simclr
from proda.models.weights import load_network, load_weights, save_weights
from proda.utils.errors import UserError


class Shrink(Encoder):
    """Means over 4 x 4 pixels and over 8 x 8."""

    channels, multiple = (3, 3), 8

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image: Tensor) -> list[Tensor]:
        self.seen = image
        quarter = self.scale * nn.functional.avg_pool2d(image, 4)
        return [quarter, nn.functional.avg_pool2d(quarter, 2)]


@pytest.mark.parametrize("name", TORCHVISION)
def test_four_scales_have_the_sizes_and_channels_that_the_encoder_says(name):
    with torch.device("meta"):
        encoder = TorchvisionEncoder(name)
        scales = encoder(torch.rand(1, 3, 64, 96))
    assert [tuple(x.shape[2:]) for x in scales] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [x.shape[1] for x in scales] == list(encoder.channels)


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_v2_t"])
def test_the_last_scale_is_what_torchvisions_classifier_reads(name):
    torch.manual_seed(0)
    whole, encoder = getattr(models, name)(weights=None).eval(), TorchvisionEncoder(name).eval()
    found = {key: value for key, value in whole.state_dict().items() if key.startswith("features.")}
    encoder.load_state_dict(found)
    image = torch.rand(1, 3, 64, 96)
    expected = whole.features(image)
    expected = expected.permute(0, 3, 1, 2) if name.startswith("swin") else expected
    assert torch.equal(encoder(image)[-1], expected)


def test_images_are_normalised_and_filled_up_with_the_mean_colour_inside_the_network():
    network = EncoderDecoder(2, Shrink(), head="daformer", bn_pretrain=False, dropout=0.0)
    image = torch.rand(1, 3, 13, 22)
    output = network(image)
    seen = network.encoder.seen
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    torch.testing.assert_close(seen[:, :, :13, :22], (image - mean) / deviation)
    assert network.neutral_color == tuple(MEAN)  # what the encoder sees as zeros
    assert seen.shape == (1, 3, 16, 24) and not seen[:, :, 13:].any() and not seen[:, :, :, 22:].any()
    assert output.logits.shape == (1, 2, 4, 6)  # 13 / 4 and 22 / 4, rounded up


@pytest.mark.parametrize(("head", "size"), [("daformer", (4, 6)), ("deeplab", (2, 3))])
def test_the_filling_does_not_change_the_size_of_the_output(head, size):
    network = EncoderDecoder(2, Shrink(), head=head, bn_pretrain=False, dropout=0.0).eval()
    for height in (9, 13, 16):
        output = network(torch.rand(1, 3, height, 24))
        stride = 4 if head == "daformer" else 8
        assert output.features.shape[2:] == (-(-height // stride), size[1])


def test_state_dict_is_what_is_learnt_and_the_normalisation_goes_with_the_network():
    network = build_network("convnext_tiny", 2)
    assert not any(key in ("mean", "deviation") for key in network.state_dict())
    assert network.half().mean.dtype == torch.float16


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_v2_t"])
def test_torchvisions_weights_fill_the_encoder_and_all_of_it(name, tmp_path):
    torch.manual_seed(0)
    whole, network = getattr(models, name)(weights=None), build_network(name, 3, head="daformer")
    for value in whole.state_dict().values():
        if value.is_floating_point():
            value.uniform_()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    head = network.decoder.head[1].weight.clone()
    line = load_imagenet(network, tmp_path / "weights.pth")
    number = len(network.encoder.state_dict())
    assert f"{number} of the backbone's {number} tensors loaded" in line
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in network.encoder.state_dict().items())
    assert torch.equal(network.decoder.head[1].weight, head)
    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other.pth: found 0 of the \d+ tensors expected by the backbone; .*conv1"):
        load_imagenet(network, tmp_path / "other.pth")


def test_missing_torchvision_weights_that_cannot_be_fetched_are_one_line(tmp_path, monkeypatch):
    def offline(*_args, **_options):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with torch.device("meta"):
        network = build_network("convnext_tiny", 3)
    with pytest.raises(
        UserError, match=r"convnext_tiny-\w+.pth is not there and https.* cannot be fetched .no network"
    ):
        load_imagenet(network)


@pytest.mark.parametrize("head", ["deeplab", "daformer"])
@pytest.mark.parametrize("bn_pretrain", [False, True])
def test_weights_file_alone_builds_the_network_again(head, bn_pretrain, tmp_path):
    torch.manual_seed(0)
    network = build_network("convnext_tiny", 2, head=head, bn_pretrain=bn_pretrain).eval()
    save_weights(tmp_path / "last.pt", network, class_names=("road", "sky"))
    loaded, image = load_network(tmp_path / "last.pt").eval(), torch.rand(1, 3, 40, 33)
    assert (loaded.backbone, loaded.head) == ("convnext_tiny", head)
    assert torch.equal(loaded(image).logits, network(image).logits)
    other = {"deeplab": "daformer", "daformer": "deeplab"}[head]
    with pytest.raises(UserError, match=rf"last.pt: found weights of --head={head}, expected --head={other}$"):
        load_network(tmp_path / "last.pt", head=other)


@pytest.mark.parametrize("head", ["deeplab", "daformer"])
@pytest.mark.parametrize("backbone", ["tiny", "convnext_tiny"])
def test_a_bare_state_dict_is_known_by_its_shapes(backbone, head, tmp_path):
    torch.save(build_network(backbone, 4, head=head).state_dict(), tmp_path / "bare.pt")
    info = load_weights(tmp_path / "bare.pt").info
    assert (info.backbone, info.head, info.num_classes) == (backbone, head, 4)


def test_own_pretraining_fits_and_simclr_of_a_resnet_does_not(tmp_path):
    theirs, network = build_network("convnext_tiny", 1), build_network("convnext_tiny", 3, head="daformer")
    torch.save(backbone_content(theirs), tmp_path / "last.pt")
    load_simclr(network, tmp_path / "last.pt")
    learnt = theirs.encoder.state_dict()
    assert all(torch.equal(value, learnt[key]) for key, value in network.encoder.state_dict().items())
    torch.save({"state_dict": {"conv1.weight": torch.ones(1)}}, tmp_path / "r101.pth")
    with pytest.raises(
        UserError, match=r"r101.pth: found SimCLR weights of a ResNet, expected --backbone=resnet101 or"
    ):
        load_simclr(network, tmp_path / "r101.pth")


def test_pretraining_of_a_resnet_fits_under_either_head(tmp_path):
    theirs, network = build_network("tiny", 1), build_network("tiny", 3, head="daformer")
    torch.save(backbone_content(theirs), tmp_path / "last.pt")
    load_simclr(network, tmp_path / "last.pt")
    assert torch.equal(network.layer4[0].conv3.weight, theirs.layer4[0].conv3.weight)


def test_an_encoder_of_ones_own_gets_a_name(monkeypatch):
    monkeypatch.setitem(BUILDERS, "shrink", on_encoder(Shrink))
    network = build_network("shrink", 2, head="daformer")
    assert network.backbone == "shrink" and network(torch.rand(1, 3, 16, 16)).logits.shape == (1, 2, 4, 4)
    network.checkpoint_activations = True  # of the encoder as a whole, as it does not do so itself
    network(torch.rand(1, 3, 16, 16)).logits.sum().backward()
    assert network.encoder.scale.grad is not None


def test_frozen_batch_norm_leaves_layer_norm_alone():
    network = build_network("convnext_tiny", 2, head="daformer")
    freeze_batch_norm(network)
    norms = [module for module in network.modules() if isinstance(module, nn.LayerNorm)]
    assert norms and all(parameter.requires_grad for norm in norms for parameter in norm.parameters())
    assert not any(p.requires_grad for p in network.decoder.fusion[1].parameters())
