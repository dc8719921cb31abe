"""Feature distance: a loss on the source that holds the backbone where it was."""

import pytest
import torch

from proda.engines.events import ProdaEvents
from proda.handlers.feature_distance import FeatureDistance
from proda.method.feature_distance import mostly_one_of
from proda.models.build import build_network
from proda.models.network import SegmentationNetwork
from proda.utils.errors import UserError
from tests import tiny
from tests.tiny import PRECISION, K

THINGS = [0, 1]


def batch():
    """Whole blocks of one class, so that cells have one."""
    found = tiny.batch()
    found["source"]["labels"][:, :, :32], found["source"]["labels"][:, :, 32:] = 1, 3
    return found


def trainer_of(network, lr=0.0, **options):
    trainer = tiny.trainer("supervised", network, lr=lr)
    handler = FeatureDistance(network, PRECISION, THINGS, **options)
    handler.attach(trainer)
    return trainer, handler


def test_it_is_the_mean_distance_to_the_initial_features_of_the_things():
    network, data = tiny.network(dropout=0.0), batch()
    trainer, _ = trainer_of(network, weight=0.5)
    with torch.no_grad():
        for parameter in network.parameters():  # after the handler was made
            parameter.mul_(1.1)
        image = data["source"]["image"].float() / 255
        now = network.train().backbone_features(image)
        before = tiny.network(dropout=0.0).eval().backbone_features(image)
    counted = mostly_one_of(data["source"]["labels"], THINGS, tuple(now.shape[-2:]))
    assert 0 < counted.float().mean() < 1
    expected = 0.5 * (now - before).norm(dim=1)[counted].mean()
    output = trainer.run([data]).output
    assert output["loss_feature_distance"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert output["loss"].item() == pytest.approx((output["loss_source"] + output["loss_feature_distance"]).item())


def test_it_pulls_the_backbone_back():
    moved = {}
    for weight in (1e-9, 3.0):
        network = tiny.network(dropout=0.0)
        trainer, handler = trainer_of(network, lr=0.05, weight=weight)
        trainer.run([batch()] * 8)
        with torch.no_grad():
            image = batch()["source"]["image"].float() / 255
            apart = handler.frozen.backbone_features(image) - network.eval().backbone_features(image)
        moved[weight] = apart.norm(dim=1).mean().item()
    assert moved[3.0] < moved[1e-9]


def test_the_frozen_network_never_changes_and_is_not_trained():
    network = tiny.network(dropout=0.0)
    trainer, handler = trainer_of(network, lr=0.1)
    before = {name: value.clone() for name, value in handler.frozen.state_dict().items()}
    trainer.run([batch()] * 2)
    assert all(value.equal(before[name]) for name, value in handler.frozen.state_dict().items())
    assert not any(parameter.requires_grad for parameter in handler.frozen.parameters())


def test_without_any_thing_the_loss_is_zero():
    data = batch()
    data["source"]["labels"][:] = 4
    trainer, _ = trainer_of(tiny.network())
    assert trainer.run([data]).output["loss_feature_distance"] == 0


def test_nothing_keeps_the_features_after_the_backward_pass():
    trainer, handler = trainer_of(tiny.network())
    kept = []
    trainer.add_event_handler(ProdaEvents.SOURCE_LOSSES_READY, lambda _: kept.append(handler.features is not None))
    trainer.run([batch()])
    assert kept == [False] and handler.features is None  # let go of at once: the teacher's pass comes next
    with torch.no_grad():
        handler.network.eval()(torch.rand(1, 3, 32, 32))
    assert handler.features is None  # nor does evaluation leave any


def test_a_network_that_hides_its_backbone_or_has_no_features_of_it_is_named(monkeypatch):
    network = tiny.network()
    trainer, _ = trainer_of(network)
    monkeypatch.setattr(type(network), "forward", lambda self, x: self.layer5(torch.rand(len(x), 256, 9, 17)))
    monkeypatch.setattr(type(network), "num_features", 32, raising=False)
    with pytest.raises(UserError, match="DeepLab does not pass the output of its backbone through backbone_output"):
        trainer.run([batch()])
    monkeypatch.setattr(type(network), "backbone_features", SegmentationNetwork.backbone_features)
    with pytest.raises(UserError, match="the network DeepLab does not have backbone_features"):
        FeatureDistance(network, PRECISION, THINGS)


def test_labels_are_filled_up_as_the_network_fills_up_the_image():
    """A crop of 40 x 72 pixels becomes 64 x 96: its last cells show the filling too."""
    network = build_network("convnext_tiny", K, head="daformer", dropout=0.0)
    handler = FeatureDistance(network, PRECISION, [1])
    labels = torch.ones(1, 40, 72, dtype=torch.uint8)
    counted = handler._counted(labels, torch.zeros(1, 768, 2, 3))
    assert counted.tolist() == [[[True, True, False], [False, False, False]]]
