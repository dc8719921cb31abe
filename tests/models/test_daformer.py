"""DAFormer's head against its definition."""

import torch
import torch.nn.functional as F
from torch import nn

from proda.models.daformer import DAFormerHead


def test_features_and_logits_are_those_of_the_definition():
    torch.manual_seed(0)
    model = DAFormerHead((4, 6), 8, 3, dropout=0.0).eval()
    scales = [torch.rand(2, 4, 8, 12), torch.rand(2, 6, 4, 6)]
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
