"""The networks against ``model_r101.json``, ``model_forward.npz``, ``strides.json`` and ``weight_recipe.json``.

A forward pass is compared at the tolerance of ``data/README.md``; everything else is equal.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from proda.models.build import build_network
from proda.models.deeplab import DeepLab
from proda.models.discriminator import Discriminator
from proda.models.network import freeze_batch_norm, parameter_groups
from proda.models.weights import load_into, load_prototypes, load_weights
from tests.golden.recipe import fill

DATA = Path(__file__).parent / "data"
LAYOUT = json.loads((DATA / "model_r101.json").read_text())
SIZES = json.loads((DATA / "strides.json").read_text())["sizes"]
RECIPE = json.loads((DATA / "weight_recipe.json").read_text())
FULL = {"plain": LAYOUT["deeplabv2_resnet101"], "bn": LAYOUT["deeplabv2_resnet101_bn_pretrain"]}
SMALL, DEEP = (1, 1, 1, 1), (3, 4, 23, 3)


class Used(dict):
    """Arrays that remember which of them were read."""

    def __init__(self, path: Path) -> None:
        super().__init__(np.load(path))
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> np.ndarray:
        self.read.add(key)
        return super().__getitem__(key)


FORWARD = Used(DATA / "model_forward.npz")


@pytest.fixture(scope="module", autouse=True)
def _every_array_is_used(request):
    """After the last test of the module, when all of them were run."""
    yield
    chosen = {item.name for item in request.session.items if item.path == Path(__file__)}
    if all(any(name.startswith(test) for name in chosen) for test in globals() if test.startswith("test_")):
        assert set(FORWARD) - FORWARD.read == set()


def small(variant: str) -> DeepLab:
    return fill(DeepLab(19, blocks=SMALL, bn_pretrain=variant == "bn", dropout=0.0))


def full(variant: str) -> DeepLab:
    with torch.device("meta"):
        return build_network("resnet101", 19, bn_pretrain=variant == "bn")


def assert_close(found: torch.Tensor, key: str, tolerance: float) -> None:
    torch.testing.assert_close(found.detach(), torch.from_numpy(FORWARD[key]), rtol=0, atol=tolerance)


def entries(model: nn.Module) -> list:
    return [[key, list(value.shape), str(value.dtype)[6:]] for key, value in model.state_dict().items()]


# model_r101.json


@pytest.mark.parametrize("variant", ["plain", "bn"])
def test_state_dict_has_the_released_keys_shapes_types_and_order(variant):
    model, golden = full(variant), FULL[variant]
    assert entries(model) == golden["state_dict"]
    assert len(entries(model)) == golden["n_state_entries"]
    assert len(list(model.parameters())) == golden["n_parameters_tensors"]
    assert sum(parameter.numel() for parameter in model.parameters()) == golden["n_parameters"]
    assert sum(buffer.numel() for buffer in model.buffers()) == golden["n_buffer_elements"]


@pytest.mark.parametrize("variant", ["plain", "bn"])
def test_learning_rate_groups_repeat_what_the_released_ones_repeat(variant):
    model, golden = full(variant), FULL[variant]
    name = {parameter: key for key, parameter in model.named_parameters()}
    backbone, head = parameter_groups(model, 2.5e-4, repeat_backbone=True)
    sequence = [name[parameter] for parameter in backbone["params"]]
    assert len(sequence) == golden["lr_1x_sequence_length"]
    assert sequence == FULL["plain"]["lr_1x_sequence"]  # the same in both; stored once
    assert {key: sequence.count(key) for key in sequence} == golden["lr_1x_occurrences"]
    assert len(set(sequence)) == golden["lr_1x_unique"]
    head_sequence = [name[parameter] for parameter in head["params"]]
    assert head_sequence == golden["lr_10x_sequence"]
    assert (len(set(head_sequence)) < len(head_sequence)) is golden["lr_10x_has_duplicates"]
    assert sorted(set(sequence) & set(head_sequence)) == golden["in_both_groups"]
    assert sorted(set(name.values()) - set(sequence) - set(head_sequence)) == golden["in_no_group"]


@pytest.mark.parametrize("variant", ["plain", "bn"])
def test_learning_rate_groups_hold_each_parameter_once_by_default(variant):
    model, golden = full(variant), FULL[variant]
    name = {parameter: key for key, parameter in model.named_parameters()}
    backbone, head = parameter_groups(model, 2.5e-4)
    assert [name[parameter] for parameter in backbone["params"]] == list(golden["lr_1x_occurrences"])
    assert [name[parameter] for parameter in head["params"]] == golden["lr_10x_sequence"]


def test_small_network_has_the_released_keys_and_size():
    golden = LAYOUT["small_blocks_1111"]
    for bn, suffix in ((False, ""), (True, "_with_bn_pretrain")):
        with torch.device("meta"):
            model = DeepLab(19, blocks=SMALL, bn_pretrain=bn)
        assert list(model.state_dict()) == golden["state_keys" + suffix]
        assert sum(parameter.numel() for parameter in model.parameters()) == golden["n_parameters" + suffix]


def test_discriminator_has_the_released_layers():
    golden = LAYOUT["discriminator_19"]
    model = Discriminator(19)
    assert entries(model) == golden["state_dict"]
    assert sum(parameter.numel() for parameter in model.parameters()) == golden["n_parameters"]
    four, last = golden["layout"]
    convolutions = [model.conv1, model.conv2, model.conv3, model.conv4]
    assert [convolution.out_channels for convolution in convolutions] == four["channels"]
    for convolution in convolutions:
        assert convolution.kernel_size[0] == four["kernel"]
        assert (convolution.stride[0], convolution.padding[0]) == (four["stride"], four["padding"])
    assert (model.classifier.kernel_size[0], model.classifier.stride[0]) == (last["kernel"], last["stride"])
    assert (model.classifier.padding[0], model.classifier.out_channels) == (last["padding"], last["channels"])
    with torch.device("meta"):
        assert list(Discriminator(19)(torch.rand(1, 19, 64, 128)).shape) == golden["output_for_64x128"]


def test_discriminator_activations_are_the_released_ones():
    assert LAYOUT["discriminator_19"]["activations"] == ["relu", "relu", "relu", "leaky_relu(0.2)", "none"]
    losses = np.load(DATA / "losses.npz")
    with torch.no_grad():
        scores = fill(Discriminator(19))(torch.from_numpy(losses["adversarial_logits"]).softmax(1))
    expected = torch.from_numpy(losses["adversarial_discriminator_output"])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_normalisation_constants_are_the_released_ones():
    golden = LAYOUT["normalisation"]
    for module in full("bn").modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (golden["batch_norm_eps"], golden["batch_norm_momentum"])
        if isinstance(module, nn.GroupNorm):
            assert (module.eps, module.num_groups) == (golden["group_norm_eps"], golden["group_norm_groups"])


def test_fresh_weights_follow_the_released_initialisation():
    golden = LAYOUT["initialisation"]
    assert golden["conv2d_weights"].startswith("normal(mean 0, std 0.01) for every Conv2d")
    assert golden["batch_norm"] == golden["group_norm"] == "weight 1, bias 0"
    assert golden["bottleneck_conv_bias"] == "0"
    assert golden["head_branch_conv_bias"] == "framework default (uniform in +-1/sqrt(fan_in))"
    assert golden["se_linear"] == "framework default"
    assert golden["backbone"].startswith("then every key shared with an ImageNet")  # tests/models/test_weights.py
    model = DeepLab(19, blocks=SMALL, bn_pretrain=True)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.06)  # 4864 numbers and more
            assert abs(module.weight.mean().item()) < 0.001
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all()
        if isinstance(module, nn.Linear):
            assert uniform_within(module.weight, module.in_features) and uniform_within(module.bias, module.in_features)
    for branch in model.layer5.conv2d_list:
        assert uniform_within(branch[0].bias, branch[0].weight[0].numel())
    assert (model.layer5.bottleneck[1].bias == 0).all()


def uniform_within(values: torch.Tensor, fan_in: int) -> bool:
    """Whether the numbers look uniform in +-1/sqrt(fan_in): deviation bound / sqrt(3)."""
    bound = fan_in**-0.5
    return bool(values.abs().max() <= bound and abs(values.std() / (bound / 3**0.5) - 1) < 0.2)


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize("zip_container", [True, False])
@pytest.mark.parametrize("stage", ["warm_up", "stage1"])
def test_released_checkpoint_layout_loads_strictly(tmp_path, stage, zip_container):
    golden = LAYOUT["checkpoint"]
    assert golden["container"] == "torch.save of a dict (zip or legacy pickle)"
    names = list(golden["top_level"])
    assert names == ["ResNet101", "iter", "best_iou", "FCDiscriminator"]
    assert list(golden["network_entry"]) == ["model_state", "objective_vectors"]
    assert golden["file_name_best"].format(source="gta5", target="cityscapes", model="deeplabv2") == golden["example"]
    assert golden["file_name_current"].endswith("_current_model.pkl")
    assert "optimizer state" in golden["absent"] and "numpy scalars" in golden["note"]
    golden_state = FULL["plain"]["state_dict"]
    # One number stands for each tensor: the layout is what counts, and the file stays small.
    state = {key: torch.zeros((), dtype=getattr(torch, kind)).expand(size) for key, size, kind in golden_state}
    vectors = torch.rand(19, 256) if stage == "stage1" else torch.zeros(19, 256)
    data = {names[0]: {"model_state": state, "objective_vectors": vectors}, "iter": 1000, "best_iou": np.float64(0.433)}
    if stage == "warm_up":
        critic = {key: torch.ones(size) for key, size, _ in LAYOUT["discriminator_19"]["state_dict"]}
        data[names[3]] = {"model_state": critic, "objective_vectors": torch.zeros(19, 256)}
    path = tmp_path / golden["example"]
    torch.save(data, path, _use_new_zipfile_serialization=zip_container)
    weights = load_weights(path)
    assert (weights.info.iteration, weights.info.miou, weights.info.backbone) == (1000, 0.433, "resnet101")
    assert [[key, list(value.shape), str(value.dtype)[6:]] for key, value in weights.model.items()] == golden_state
    if stage == "stage1":
        assert torch.equal(load_prototypes(path), vectors)
    assert len(weights.model) == 653
    load_into(full("plain"), weights)


@pytest.mark.parametrize("zip_container", [True, False])
def test_released_prototype_file_loads(tmp_path, zip_container):
    golden = LAYOUT["prototype_file"]
    assert golden["content"].startswith("torch.save of one bare float32 CPU tensor [n_class, 256]")
    assert golden["file_name"].format(dataset="cityscapes", model="deeplabv2") == golden["example"]
    assert (golden["extension"], golden["place"][:11]) == ("none", "same folder")
    prototypes = torch.rand(19, 256)
    torch.save(prototypes, tmp_path / golden["example"], _use_new_zipfile_serialization=zip_container)
    assert torch.equal(load_prototypes(tmp_path / golden["example"]), prototypes)


def test_no_entry_of_the_layout_file_is_forgotten():
    used = {"deeplabv2_resnet101", "deeplabv2_resnet101_bn_pretrain", "small_blocks_1111", "discriminator_19"}
    assert set(LAYOUT) == used | {"normalisation", "initialisation", "checkpoint", "prototype_file"}


# weight_recipe.json


@pytest.mark.parametrize("network", RECIPE["networks"])
def test_recipe_fills_the_recorded_values(network):
    golden = RECIPE["networks"][network]
    if network == "discriminator_19":
        model = fill(Discriminator(19), RECIPE["salt"])
    elif network.startswith("blocks_1111"):
        model = fill(DeepLab(19, blocks=SMALL, bn_pretrain=True), RECIPE["salt"])
        assert set(golden) == {key for key in model.state_dict() if not key.endswith("num_batches_tracked")}
    else:
        model = fill(DeepLab(19, blocks=DEEP), RECIPE["salt"], deep=True)
    state = model.state_dict()
    for key, expected in golden.items():
        values = state[key].double()
        assert list(values.shape) == expected["shape"]
        assert values.flatten()[:3].tolist() == pytest.approx(expected["first"], rel=1e-6)
        assert values.norm().item() == pytest.approx(expected["l2"], rel=1e-6)
        if "mean" in expected:
            assert values.mean().item() == pytest.approx(expected["mean"], rel=1e-4, abs=1e-9)


# model_forward.npz


@pytest.mark.parametrize("size", ["65x97", "64x128"])
@pytest.mark.parametrize("variant", ["plain", "bn"])
def test_forward_in_evaluation_mode(variant, size):
    with torch.no_grad():
        output = small(variant).eval()(torch.from_numpy(FORWARD[f"image_{size}"]))
    assert_close(output.features, f"eval_{variant}_{size}_features", 1e-4)
    assert_close(output.logits, f"eval_{variant}_{size}_logits", 1e-4)


@pytest.mark.parametrize("variant", ["plain", "bn"])
def test_forward_in_training_mode_and_running_statistics(variant):
    model = small(variant).train()
    with torch.no_grad():
        output = model(torch.from_numpy(FORWARD["image_65x97"]))
    assert_close(output.features, f"train_{variant}_65x97_features", 1e-4)
    assert_close(output.logits, f"train_{variant}_65x97_logits", 1e-4)
    prefix = f"train_{variant}_65x97_running_"
    for key in [key for key in FORWARD if key.startswith(prefix)]:
        statistic, layer = key.removeprefix(prefix).split("_after::")
        assert_close(getattr(model.get_submodule(layer), f"running_{statistic}"), key, 1e-5)
    counted = FORWARD[f"train_{variant}_num_batches_tracked_after"]
    assert all(value == counted for key, value in model.state_dict().items() if key.endswith("num_batches_tracked"))


@pytest.mark.parametrize("variant", ["plain", "bn"])
def test_forward_at_full_depth(variant):
    model = fill(DeepLab(19, blocks=DEEP, bn_pretrain=variant == "bn"), deep=True).eval()
    with torch.no_grad():
        output = model(torch.from_numpy(FORWARD["deep_image_65x129"]))
    assert_close(output.logits, f"deep_eval_{variant}_65x129_logits", 5e-4)


def test_frozen_batch_norm_uses_running_statistics_in_training_mode():
    model = small("plain").train()
    freeze_batch_norm(model)
    with torch.no_grad():
        output = model(torch.from_numpy(FORWARD["image_65x97"]))
    assert_close(output.logits, "eval_plain_65x97_logits", 1e-4)


# strides.json


@pytest.mark.parametrize("case", SIZES, ids=lambda case: "x".join(map(str, case["input"])))
def test_output_size(case):
    output = full("plain")(torch.empty(1, 3, *case["input"], device="meta"))  # shapes alone, no arithmetic
    assert list(output.logits.shape) == [1, 19, *case["output"]]
    assert list(output.features.shape) == [1, 256, *case["output"]]
