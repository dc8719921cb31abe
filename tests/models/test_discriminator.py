import torch
from torch import nn

from proda.models.discriminator import Discriminator


def test_one_score_for_each_sixteen_pixels_rounded_up():
    model = Discriminator(5, width=2)
    assert model(torch.rand(2, 5, 64, 128)).shape == (2, 1, 4, 8)
    assert model(torch.rand(1, 5, 33, 17)).shape == (1, 1, 3, 2)


def test_last_activation_leaks_and_the_score_has_none():
    model = Discriminator(1, width=1)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(model.conv4.bias, -1.0)
    nn.init.constant_(model.classifier.weight, 1.0)
    torch.testing.assert_close(model(torch.zeros(1, 1, 16, 16)), torch.full((1, 1, 1, 1), -1.6))  # 8 channels of -0.2


def test_channels_double_from_layer_to_layer():
    model = Discriminator(3, width=4)
    layers = (model.conv1, model.conv2, model.conv3, model.conv4)
    assert [layer.out_channels for layer in layers] == [4, 8, 16, 32]
