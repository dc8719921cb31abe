"""DAFormer's head against its definition."""

import torch
import torch.nn.functional as F
from torch import nn

from proda.models.build import build_network
from proda.models.daformer import DAFormerHead


def head(**settings) -> DAFormerHead:
    torch.manual_seed(0)
    return DAFormerHead((4, 6), 8, 3, **{"dropout": 0.0} | settings)


def maps() -> list[torch.Tensor]:
    return [torch.rand(2, 4, 8, 12), torch.rand(2, 6, 4, 6)]


def test_features_and_logits_are_those_of_the_definition():
    model, scales = head().eval(), maps()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for parameter in module.parameters():
                nn.init.uniform_(parameter, 0.5, 1.5)
            module.running_mean.uniform_()
            module.running_var.uniform_(0.5, 1.5)

    def block(x, layers, **options):
        convolution, norm, _ = layers
        x = F.conv2d(x, convolution.weight, **options)
        x = (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + 1e-5).sqrt()
        return (x * norm.weight[:, None, None] + norm.bias[:, None, None]).relu()

    projected = [
        F.interpolate(F.conv2d(x, layer.weight, layer.bias), (8, 12), mode="bilinear", align_corners=False)
        for x, layer in zip(scales, model.projections, strict=True)
    ]
    x = torch.cat(projected, 1)
    assert x.shape == (2, 16, 8, 12)
    context = [block(x, model.branches[0])]
    for branch, dilation in zip(model.branches[1:], (6, 12, 18), strict=True):
        depthwise = block(x, branch[0], padding=dilation, dilation=dilation, groups=16)
        context.append(block(depthwise, branch[1]))
    features = block(torch.cat(context, 1), model.fusion, padding=1)
    output = model(scales, (8, 12))
    torch.testing.assert_close(output.features, features)
    classifier = model.head[1]
    torch.testing.assert_close(output.logits, F.conv2d(features, classifier.weight, classifier.bias))


def test_features_are_taken_after_dropout_of_whole_channels():
    model = head(dropout=0.5).train()
    output = model(maps(), (8, 12))
    torch.testing.assert_close(output.logits, model.head[1](output.features))
    dropped = (output.features == 0).all(dim=3).all(dim=2)
    assert 0 < dropped.sum() < dropped.numel()


def test_fresh_predictions_are_undecided_and_the_signal_does_not_die_out():
    torch.manual_seed(0)
    output = build_network("tiny", 13, head="daformer", dropout=0.0).train()(torch.rand(2, 3, 64, 112))
    assert 0.1 < output.features.std() < 10
    assert output.logits.abs().max() < 0.5


def test_tiny_has_as_few_channels_as_under_its_own_head():
    network = build_network("tiny", 13, head="daformer")
    assert network.num_features == 32 and network.layer5.fusion[0].out_channels == 32
