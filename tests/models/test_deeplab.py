import copy
import warnings

import pytest
import torch
from torch import nn

from proda.models import deeplab
from proda.models.deeplab import (
    DeepLab,
    Dropout,
    SqueezeExcitation,
    build_deeplab,
    freeze_batch_norm,
    parameter_groups,
)


def smallest(**settings) -> DeepLab:
    return DeepLab(3, blocks=(2, 1, 1, 1), width=2, head_channels=16, **settings)


@pytest.mark.parametrize(("stride", "size"), [(8, (5, 9)), (4, (9, 17))])
def test_output_is_at_network_stride_plus_one(stride, size):
    output = smallest(stride=stride).eval()(torch.rand(2, 3, 32, 64))
    assert output.logits.shape == (2, 3, *size)
    assert output.features.shape == (2, 16, *size)


def test_logits_are_the_last_convolution_of_the_features():
    model = smallest().train()  # with dropout: features are taken after it
    output = model(torch.rand(2, 3, 32, 64))
    assert torch.equal(output.logits, model.layer5.head[1](output.features))


def test_dropout_takes_whole_feature_channels_and_scales_the_others():
    model = smallest(dropout=0.5).train()
    channels = model(torch.rand(2, 3, 32, 64)).features.abs().amax((2, 3))
    assert (channels == 0).any() and (channels > 0).any()
    model.layer5.head[0].p = 0.0
    assert (model(torch.rand(2, 3, 32, 64)).features.abs().amax((2, 3)) > 0).all()


def test_processes_with_equal_generators_drop_what_one_process_would(monkeypatch):
    x, layer = torch.rand(4, 8, 2, 2), Dropout(0.5)

    def dropped(part: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return layer(part)

    expected = dropped(x)
    torch.manual_seed(0)
    assert torch.equal(expected, nn.Dropout2d(0.5)(x))
    monkeypatch.setattr(deeplab.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(deeplab.dist, "get_world_size", lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(deeplab.dist, "get_rank", lambda rank=rank: rank)
        parts.append(dropped(x[2 * rank : 2 * rank + 2]))
    assert torch.equal(torch.cat(parts), expected)


def test_squeeze_excitation_multiplies_channels_by_a_gate():
    block = SqueezeExcitation(16)
    nn.init.zeros_(block.se[2].weight)
    nn.init.zeros_(block.se[2].bias)
    image = torch.rand(1, 16, 2, 3)
    assert torch.equal(block(image), image / 2)  # sigmoid(0)


def test_stride_sits_on_the_first_convolution_and_first_blocks_are_dilated():
    model = smallest()
    block = model.layer2[0]
    assert (block.conv1.stride, block.conv2.stride, block.downsample[0].stride) == ((2, 2), (1, 1), (2, 2))
    assert (model.layer3[0].conv2.dilation, model.layer4[0].conv2.dilation) == ((2, 2), (4, 4))


def test_batch_norm_of_any_depth_leaves_its_counter_alone():
    model = smallest(bn_pretrain=True).train()
    model(torch.rand(2, 3, 32, 64))
    assert all(value == 0 for key, value in model.state_dict().items() if key.endswith("num_batches_tracked"))
    assert model.bn_pretrain.running_mean.any()


def test_batch_norm_converts_to_the_synchronised_one_of_torch():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(smallest())
    assert isinstance(model.layer1[0].bn1, nn.SyncBatchNorm)
    freeze_batch_norm(model.train())
    assert not model.layer1[0].bn1.training


def test_frozen_batch_norm_neither_moves_nor_learns():
    model = smallest()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    freeze_batch_norm(model.train())
    model(torch.rand(2, 3, 32, 64)).logits.sum().backward()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.weight.grad is None and norm.bias.grad is None and not norm.training for norm in norms)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.conv1.weight.grad is not None and model.training


@pytest.mark.parametrize("name", ["resnet101", "resnet50", "tiny"])
def test_every_network_is_built_with_every_option(name):
    with torch.device("meta"):
        model = build_deeplab(name, 16, bn_pretrain=True, dropout=0.25)
        assert model(torch.rand(1, 3, 64, 128)).logits.shape[1] == model.num_classes == 16
    assert model.bn_pretrain is not None and model.layer5.head[0].p == 0.25


def test_unknown_network_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match=r"'resnet18', expected resnet101, resnet50 or tiny"):
        build_deeplab("resnet18", 19)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match=r"stride must be 4 or 8, got 16"):
        smallest(stride=16)
    with pytest.raises(ValueError, match=r"multiple of 8, got 12"):
        DeepLab(3, head_channels=12)


def test_tiny_network_passes_a_signal_and_starts_undecided():
    model = build_deeplab("tiny", 13).train()
    output = model(torch.rand(4, 3, 64, 112))
    assert output.features.std().item() == pytest.approx(1, abs=0.2)  # a group norm comes before
    assert output.logits.softmax(1).max().item() < 0.25
    output.logits.square().sum().backward()
    assert model.conv1.weight.grad.abs().max() > 0


def test_tiny_network_learns_two_colours_from_scratch():
    model = build_deeplab("tiny", 2, dropout=0.0).train()
    optimizer = torch.optim.SGD(parameter_groups(model, 0.02, head_factor=1), momentum=0.9)
    image = torch.zeros(2, 3, 32, 32)
    image[..., 16:] = 1
    labels = torch.zeros(2, 9, 9, dtype=torch.long)
    labels[..., 4:] = 1
    for _ in range(15):
        logits = model(image).logits
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
    assert (logits.argmax(1) == labels).float().mean() > 0.95


def test_groups_have_ten_times_the_rate_at_the_head_or_one_rate_for_all():
    model = smallest(bn_pretrain=True)
    backbone, head = parameter_groups(model, 0.5)
    assert (backbone["lr"], head["lr"]) == (0.5, 5.0)
    assert {id(p) for p in model.bn_pretrain.parameters()} <= {id(p) for p in head["params"]}
    (flat,) = parameter_groups(model, 0.5, head_factor=1)
    assert flat["lr"] == 0.5
    every = sorted(map(id, model.parameters()))
    assert sorted(map(id, flat["params"])) == every
    assert sorted(map(id, backbone["params"] + head["params"])) == every


def test_repeated_parameter_is_stepped_as_often_as_it_is_listed():
    model = smallest()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the one that torch gives for repeated parameters is silenced
        optimizer = torch.optim.SGD(parameter_groups(model, 1.0, repeat_backbone=True), lr=1.0)
    before = {key: value.clone() for key, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    steps = {key: (before[key] - value).mean().round().item() for key, value in model.named_parameters()}
    assert steps["conv1.weight"] == 1
    assert steps["layer1.0.conv1.weight"] == steps["layer1.1.bn3.bias"] == 3
    assert steps["layer1.0.downsample.0.weight"] == 4
    assert steps["layer5.head.1.weight"] == 10  # once, at ten times the rate


def test_optimizer_with_repeated_parameters_resumes_where_it_stopped():
    def train(model: DeepLab, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            for parameter in model.parameters():
                parameter.grad = parameter.detach().clone()
            optimizer.step()

    def start() -> tuple[DeepLab, torch.optim.Optimizer]:
        model = smallest()
        return model, torch.optim.SGD(parameter_groups(model, 0.01, repeat_backbone=True), momentum=0.9)

    model, optimizer = start()
    train(model, optimizer, 2)
    resumed_model, resumed_optimizer = start()
    resumed_model.load_state_dict(model.state_dict())
    resumed_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # as a file would
    train(model, optimizer, 2)
    train(resumed_model, resumed_optimizer, 2)
    for ours, theirs in zip(resumed_model.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_repeating_the_backbone_of_a_flat_group_is_refused():
    with pytest.raises(ValueError, match=r"head_factor is 1"):
        parameter_groups(smallest(), 0.1, head_factor=1, repeat_backbone=True)


def test_forward_is_finite_in_bfloat16_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        output = smallest().train()(torch.rand(2, 3, 32, 64))
    assert output.logits.isfinite().all() and output.features.isfinite().all()
