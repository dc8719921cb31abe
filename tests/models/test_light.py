"""The light head against its definition, and as part of a network."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proda.models.build import build_network
from proda.models.deeplab import Head
from proda.models.encoder_decoder import EncoderDecoder
from proda.models.encoders import Encoder
from proda.models.light import LightHead
from proda.models.network import freeze_batch_norm
from proda.models.weights import load_network, save_weights


class Means(Encoder):
    """Means over 4 x 4, 8 x 8, 16 x 16 and 32 x 32 pixels."""

    channels = (3, 3, 3, 3)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(image, side) for side in (4, 8, 16, 32)]


def test_it_is_prodas_head_on_projections_of_three_scales_at_the_size_asked_for():
    torch.manual_seed(0)
    head = LightHead((5, 6, 7), 4, dropout=0.0).eval()
    for norm in (module for module in head.modules() if isinstance(module, nn.GroupNorm)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    maps = [torch.rand(2, width, 12 // side, 16 // side) for width, side in ((5, 1), (6, 2), (7, 4))]
    projected = []
    for x, (convolution, norm, _) in zip(maps, head.projections, strict=True):
        x = F.group_norm(F.conv2d(x, convolution.weight), 8, norm.weight, norm.bias).relu()
        projected.append(F.interpolate(x, (12, 16), mode="bilinear", align_corners=False))
    published = Head(192, 64, 4, dilations=(3, 6, 9, 12), dropout=0.0).eval()
    own = {key: value for key, value in head.state_dict().items() if not key.startswith("projections.")}
    published.load_state_dict(own)
    expected, found = published(torch.cat(projected, 1)), head(maps, (12, 16))
    assert found.features.shape == (2, 64, 12, 16) and found.logits.shape == (2, 4, 12, 16)
    torch.testing.assert_close(found.features, expected.features)
    torch.testing.assert_close(found.logits, expected.logits)


def test_fresh_projections_keep_the_size_of_the_signal_and_the_first_predictions_are_undecided():
    torch.manual_seed(0)
    head = LightHead((40, 112, 320), 11, dropout=0.0)
    for convolution, _, _ in head.projections:
        assert float(convolution.weight.detach().std()) == pytest.approx((2 / convolution.in_channels) ** 0.5, rel=0.1)
    logits = head([torch.randn(1, width, 8, 8) for width in (40, 112, 320)], (8, 8)).logits
    assert logits.std() < 0.2


@pytest.mark.parametrize("height", [33, 64])
def test_a_network_reads_the_last_three_scales_at_an_eighth_of_the_image(height):
    torch.manual_seed(0)
    network = EncoderDecoder(2, Means(), head="light", bn_pretrain=False, dropout=0.0).eval()
    seen = []
    network.decoder.register_forward_pre_hook(lambda _module, inputs: seen.extend(inputs))
    output = network(torch.rand(1, 3, height, 95))
    assert network.num_features == 64 and output.features.shape == (1, 64, -(-height // 8), 12)
    assert output.logits.shape == (1, 2, -(-height // 8), 12)
    maps, size = seen
    assert size == (8, 12) and [tuple(x.shape[2:]) for x in maps] == [(8, 12), (4, 6), (2, 3)]
    assert all(x.mean(1).abs().max() < 1e-5 for x in maps)  # each position is normalised


def test_frozen_batch_norm_freezes_nothing_of_the_head():
    network = build_network("convnext_tiny", 2, head="light")
    freeze_batch_norm(network)
    assert all(p.requires_grad for part in network.head_parts() for p in part.parameters())


def test_weights_file_alone_builds_the_network_again(tmp_path):
    network, image = build_network("convnext_tiny", 2, head="light").eval(), torch.rand(1, 3, 40, 33)
    save_weights(tmp_path / "last.pt", network, class_names=("road", "sky"))
    loaded = load_network(tmp_path / "last.pt").eval()
    assert (loaded.backbone, loaded.head, loaded.num_features) == ("convnext_tiny", "light", 64)
    assert torch.equal(loaded(image).logits, network(image).logits)
