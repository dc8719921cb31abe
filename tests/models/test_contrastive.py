"""The network of pretraining: regions of features, projections, and a head that does not learn."""

import pytest
import torch
from torch import nn

from proda.models.build import build_network
from proda.models.contrastive import GRID, ContrastiveNetwork, he_initialise, pool_regions
from proda.models.network import SegmentationNetwork
from proda.utils.errors import UserError
from tests import tiny

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


def columns(width: int = 9) -> torch.Tensor:
    """[1, 1, 5, width]: each value is its place from left to right, 0..1."""
    return torch.linspace(0, 1, width).expand(1, 1, 5, width)


def test_regions_are_means_over_a_grid():
    found = pool_regions(columns(), WHOLE, torch.tensor([False]))
    assert found.shape == (1, 1, *GRID)
    torch.testing.assert_close(found[0, 0, 2], torch.tensor([1.0, 3.0, 5.0, 7.0]) / 8)


def test_a_part_has_its_own_grid_and_a_mirrored_one_is_turned_back():
    half = torch.tensor([[0.5, 0.0, 1.0, 1.0]])
    found = pool_regions(columns(), half, torch.tensor([False]))
    torch.testing.assert_close(found[0, 0, 0], 0.5 + torch.tensor([1.0, 3.0, 5.0, 7.0]) / 16)
    mirrored = pool_regions(columns(), half, torch.tensor([True]))
    torch.testing.assert_close(mirrored, found.flip(-1))


def test_it_embeds_images_and_regions_of_both_views():
    network = ContrastiveNetwork(tiny.network(), hidden=16, dimensions=6)
    views, overlap = torch.rand(3, 2, 3, 32, 48), WHOLE.expand(3, 2, 4)
    found = network(views, overlap, torch.zeros(3, 2, dtype=torch.bool))
    assert found.images.shape == (2, 3, 6) and found.regions.shape == (2, 3, GRID[0] * GRID[1], 6)
    network.eval()
    found = network(views, overlap, torch.zeros(3, 2, dtype=torch.bool))
    for view in range(2):  # each view is embedded by itself, at its place
        again = network(views[:, [view, view]], overlap, torch.zeros(3, 2, dtype=torch.bool))
        for level in range(2):
            torch.testing.assert_close(again[level][1], found[level][view])


def test_regions_lie_row_by_row_in_the_embeddings():
    network = ContrastiveNetwork(tiny.network(), hidden=16, dimensions=6).eval()
    views = torch.rand(1, 1, 3, 32, 48).expand(1, 2, 3, 32, 48)
    upper = torch.tensor([[[0.0, 0.0, 1.0, 0.5], [0.0, 0.0, 1.0, 1.0]]])
    found = network(views, upper, torch.zeros(1, 2, dtype=torch.bool)).regions[:, 0].unflatten(1, GRID[::-1])
    nearest = (found[0].mean(1) - found[1].mean(1)[0]).norm(dim=-1)  # first row of the whole: first two of the half
    assert nearest[:2].mean() < nearest[2:].mean()


def test_the_head_gets_no_gradient_and_everything_else_does():
    backbone = tiny.network()
    network = ContrastiveNetwork(backbone, hidden=16, dimensions=6)
    found = network(torch.rand(2, 2, 3, 32, 48), WHOLE.expand(2, 2, 4), torch.zeros(2, 2, dtype=torch.bool))
    (found.images.square().sum() + found.regions.square().sum()).backward()
    head = {id(parameter) for part in backbone.head_parts() for parameter in part.parameters()}
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad) == (id(parameter) in head), name


def test_a_network_without_backbone_features_is_named():
    class Plain(SegmentationNetwork):
        backbone = "plain"

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Conv2d(3, 4, 1)

        def head_parts(self) -> tuple[nn.Module, ...]:
            return ()

    with pytest.raises(UserError, match=r"^--backbone=plain: pretraining needs a network with backbone_features"):
        ContrastiveNetwork(Plain(), hidden=4, dimensions=4)


def test_fresh_backbones_have_hes_deviation():
    network = build_network("resnet50", 1)
    assert network.layer3[0].conv2.weight.std().item() == pytest.approx(0.01, rel=0.05)
    he_initialise(network)
    assert network.layer3[0].conv2.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.05)
    assert network.layer5.head[1].weight.std().item() == pytest.approx(0.01, rel=0.1)
