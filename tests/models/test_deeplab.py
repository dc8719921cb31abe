import pytest
import torch
from torch import nn

from proda.models import layers
from proda.models.build import build_network
from proda.models.deeplab import DeepLab, Dropout, SqueezeExcitation
from proda.models.network import freeze_batch_norm, parameter_groups


def smallest(**settings) -> DeepLab:
    return DeepLab(3, blocks=(2, 1, 1, 1), width=2, head_channels=16, **settings)


@pytest.mark.parametrize(("stride", "size"), [(8, (5, 9)), (4, (9, 17))])
def test_output_is_at_network_stride_plus_one(stride, size):
    output = smallest(stride=stride).eval()(torch.rand(2, 3, 32, 64))
    assert output.logits.shape == (2, 3, *size)
    assert output.features.shape == (2, 16, *size)


@pytest.mark.parametrize("head", ["deeplab", "daformer"])
def test_features_are_taken_after_dropout_of_whole_channels(head):
    model = smallest(dropout=0.5, head=head).train()
    output = model(torch.rand(2, 3, 32, 64))
    assert torch.equal(output.logits, model.layer5.head[1](output.features))
    channels = output.features.abs().amax((2, 3))
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
    monkeypatch.setattr(layers.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(layers.dist, "get_world_size", lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(layers.dist, "get_rank", lambda rank=rank: rank)
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


@pytest.mark.parametrize("convert", [nn.Identity(), nn.SyncBatchNorm.convert_sync_batchnorm])
def test_frozen_batch_norm_neither_moves_nor_learns(convert):
    model = convert(smallest())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    freeze_batch_norm(model.train())
    model(torch.rand(2, 3, 32, 64)).logits.sum().backward()
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert all(norm.weight.grad is None and norm.bias.grad is None and not norm.training for norm in norms)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.conv1.weight.grad is not None and model.training


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match=r"stride must be 4 or 8, got 16"):
        smallest(stride=16)
    with pytest.raises(ValueError, match=r"multiple of 8, got 12"):
        DeepLab(3, head_channels=12)


@pytest.mark.parametrize("head", ["deeplab", "daformer"])
def test_tiny_network_passes_a_signal_and_starts_undecided(head):
    torch.manual_seed(0)
    model = build_network("tiny", 13, head=head, dropout=0.0).train()
    output = model(torch.rand(4, 3, 64, 112))
    assert 0.1 < output.features.std() < 10  # of its own head about 1, since a group norm comes before
    assert output.logits.softmax(1).max().item() < 0.25
    output.logits.square().sum().backward()
    assert model.conv1.weight.grad.abs().max() > 0
    assert model.num_features == model.layer5.head[1].in_channels == 32


def test_tiny_network_learns_two_colours_from_scratch():
    model = build_network("tiny", 2, dropout=0.0).train()
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


def test_forward_is_finite_in_bfloat16_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        output = smallest().train()(torch.rand(2, 3, 32, 64))
    assert output.logits.isfinite().all() and output.features.isfinite().all()


def test_checkpointed_stages_keep_less_in_memory():
    def kept(checkpoint_activations: bool) -> int:
        network = build_network("tiny", 5)
        network.checkpoint_activations, sizes = checkpoint_activations, []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):
            network.backbone_features(torch.rand(2, 3, 32, 64))
        return sum(sizes)

    assert kept(True) < kept(False) / 2
