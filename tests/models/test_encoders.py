"""Encoders of torchvision, and networks on encoders."""

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from proda.models.build import BUILDERS, build_network
from proda.models.encoder_decoder import EncoderDecoder, on_encoder
from proda.models.encoders import DEVIATION, MEAN, TORCHVISION, Encoder, TorchvisionEncoder
from proda.models.network import freeze_batch_norm


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


@pytest.mark.parametrize(("head", "stride"), [("daformer", 4), ("deeplab", 8)])
@pytest.mark.parametrize("height", [9, 13, 16])
def test_images_are_normalised_and_filled_up_with_the_mean_colour_which_the_output_does_not_show(head, stride, height):
    network = EncoderDecoder(2, Shrink(), head=head, bn_pretrain=False, dropout=0.0).eval()
    image = torch.rand(1, 3, height, 22)
    output, seen = network(image), network.encoder.seen
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    torch.testing.assert_close(seen[:, :, :height, :22], (image - mean) / deviation)
    assert network.neutral_color == tuple(MEAN)  # what the encoder sees as zeros
    assert seen.shape == (1, 3, 16, 24) and not seen[:, :, height:].any() and not seen[:, :, :, 22:].any()
    assert output.logits.shape[2:] == output.features.shape[2:] == (-(-height // stride), -(-22 // stride))


def test_state_dict_is_what_is_learnt_and_the_normalisation_goes_with_the_network():
    network = build_network("convnext_tiny", 2, head="daformer")
    assert not any(key in ("mean", "deviation") for key in network.state_dict())
    assert network.half().mean.dtype == torch.float16
    freeze_batch_norm(network)
    norms = [module for module in network.modules() if isinstance(module, nn.LayerNorm)]
    assert norms and all(parameter.requires_grad for norm in norms for parameter in norm.parameters())
    assert not any(p.requires_grad for p in network.decoder.fusion[1].parameters())


def test_an_encoder_of_ones_own_gets_a_name(monkeypatch):
    monkeypatch.setitem(BUILDERS, "shrink", on_encoder(Shrink))
    network = build_network("shrink", 2, head="daformer")
    assert network.backbone == "shrink" and network(torch.rand(1, 3, 16, 16)).logits.shape == (1, 2, 4, 4)
    network.checkpoint_activations = True  # of the encoder as a whole, as it does not do so itself
    network(torch.rand(1, 3, 16, 16)).logits.sum().backward()
    assert network.encoder.scale.grad is not None
