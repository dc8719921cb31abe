import copy
import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from proda.models.build import BUILDERS, HEADS, build_network
from proda.models.deeplab import DeepLab
from proda.models.layers import Dropout
from proda.models.network import Segmentation, SegmentationNetwork, parameter_groups
from proda.models.pretrained import load_imagenet
from proda.models.weights import load_network, save_weights
from proda.utils.errors import UserError


def smallest(**settings) -> DeepLab:
    return DeepLab(3, blocks=(2, 1, 1, 1), width=2, head_channels=16, **settings)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        *itertools.product(["resnet101", "tiny"], ["deeplab", "daformer"]),
        *itertools.product(["convnext_tiny", "swin_v2_t"], HEADS),
    ],
)
def test_a_network_of_each_kind_is_built_with_every_option_and_trained_at_odd_sizes(name, head):
    """On tensors without data: shapes, and that every parameter gets a gradient."""
    seen = []
    with torch.device("meta"):
        model = build_network(name, 16, head=head, bn_pretrain=True, dropout=0.25)
        model.backbone_output.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
        output = model(torch.rand(2, 3, 65, 97))
        (output.logits.sum() + output.features.sum()).backward()
    stride = 4 if head == "daformer" or name == "tiny" else 8
    size = (-(-65 // stride), -(-97 // stride))
    assert output.logits.shape == (2, 16, *size) and output.features.shape == (2, model.num_features, *size)
    assert (model.backbone, model.head, model.num_classes) == (name, head, 16)
    assert (model.class_names, model.origin) == ((), "")
    assert [module.p for module in model.modules() if isinstance(module, Dropout)] == [0.25]
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert len(seen) == 1 and len(seen[0]) == 4
    assert model.bn_pretrain is not None
    parts = (*model.backbone_parts(), *model.head_parts())
    found = [p for part in parts for p in part.parameters()]
    assert sorted(map(id, found)) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize(
    ("name", "head"), [("tiny", "deeplab"), ("convnext_tiny", "deeplab"), ("swin_v2_t", "daformer")]
)
def test_activations_computed_again_change_no_bit_of_outputs_gradients_statistics_and_random_numbers(name, head):
    torch.manual_seed(0)
    model, results = build_network(name, 3, head=head, dropout=0.5), []
    image = torch.rand(2, 3, 33, 65)
    for again in (False, True):
        twin = copy.deepcopy(model)
        twin.checkpoint_activations = again
        torch.manual_seed(1)
        for _ in range(2):
            output = twin(image)
            (output.logits.square().sum() + output.features.square().sum()).backward()
        results.append([output.logits, *(p.grad for p in twin.parameters()), *twin.buffers(), torch.rand(1)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("name", "head", "words"),
    [
        ("resnet18", "deeplab", "^--backbone=resnet18: expected one of resnet101, .*, timm:NAME or a file NAME.py$"),
        ("tiny", "fcn", "^--head=fcn: expected one of deeplab, daformer, light$"),
        (
            "tiny",
            "light",
            "^--head=light: it reads the scales of an encoder, which resnet101,",
        ),
    ],
)
def test_names_that_cannot_be_used_are_refused_in_one_line(name, head, words):
    with pytest.raises(UserError, match=words):
        build_network(name, 19, head=head)


class Patches(SegmentationNetwork):
    """All that a network of one's own has to have."""

    def __init__(self, num_classes: int, **options: Any) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.head = num_classes, 4, "linear"
        self.embed = nn.Conv2d(3, 4, 8, stride=8)
        self.classify = nn.Conv2d(4, num_classes, 1)

    def forward(self, image: Tensor) -> Segmentation:
        features = self.embed(image)
        return Segmentation(self.classify(features), features)

    def backbone_parts(self) -> tuple[nn.Module, ...]:
        return (self.embed,)

    def head_parts(self) -> tuple[nn.Module, ...]:
        return (self.classify,)


def test_network_of_ones_own_is_built_optimised_saved_loaded_and_filled(tmp_path, monkeypatch):
    monkeypatch.setitem(BUILDERS, "patches", Patches)
    model = build_network("patches", 2)
    backbone, head = parameter_groups(model, 0.5)
    assert backbone["params"] == list(model.embed.parameters()) and head["params"] == list(model.classify.parameters())
    save_weights(tmp_path / "last.pt", model, class_names=("road", "sky"))
    loaded = load_network(tmp_path / "last.pt", backbone="patches", class_names=("road", "sky"))
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())
    torch.save({"embed.weight": torch.ones(4, 3, 8, 8), "embed.bias": torch.ones(4)}, tmp_path / "pretrained.pth")
    assert "2 of the backbone's 2 tensors loaded, 0 left over" in load_imagenet(loaded, tmp_path / "pretrained.pth")
    assert (loaded.embed.weight == 1).all() and torch.equal(loaded.classify.weight, model.classify.weight)


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


def test_a_repeated_backbone_has_its_own_group_even_at_the_rate_of_the_head():
    model = smallest()
    backbone, head = parameter_groups(model, 0.1, head_factor=1, repeat_backbone=True)
    assert backbone["lr"] == head["lr"] == 0.1
    assert len(backbone["params"]) > 3 * len(set(backbone["params"]))
    assert set(backbone["params"]) | set(head["params"]) == set(model.parameters())
    assert not set(backbone["params"]) & set(head["params"])


def by_rate_and_decay(groups: list[dict]) -> dict[int, tuple[float, float | None]]:
    """Parameter -> its learning rate and weight decay; None: that of the optimiser."""
    return {id(p): (group["lr"], group.get("weight_decay")) for group in groups for p in group["params"]}


@pytest.mark.parametrize(
    ("name", "more", "decayed"),
    [
        ("swin_v2_t", ("cpb_mlp", "logit_scale"), "encoder.features.1.0.attn.qkv.bias"),
        ("convnext_tiny", ("layer_scale",), "encoder.features.1.0.block.0.bias"),
    ],
)
def test_norms_embeddings_and_scales_of_channels_do_not_decay_and_biases_do(name, more, decayed):
    with torch.device("meta"):
        model = build_network(name, 3, head="daformer")
    groups, named = parameter_groups(model, 1.0, spare_norms=True), dict(model.named_parameters())
    found = by_rate_and_decay(groups)
    assert len(found) == sum(len(group["params"]) for group in groups) == len(named)
    assert {rate for rate, _ in found.values()} == {1.0, 10.0}
    spared = {name for name, parameter in named.items() if found[id(parameter)][1] == 0.0}
    norms = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        for part in ("weight", "bias")
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d)
    }
    scales = {name for name in named if any(part in name for part in more)}
    assert norms and scales and spared == norms | scales
    assert {decayed, "decoder.head.1.bias", "decoder.projections.0.weight"} < named.keys() - spared
