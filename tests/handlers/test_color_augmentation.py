"""Colour augmentation as a handler."""

import numpy as np
import torch

from proda.data.color import NUMBERS, change_colors, color_changes
from proda.engines.events import ProdaEvents
from proda.handlers.class_mix import ClassMix
from proda.handlers.color_augmentation import ColorAugmentation, augmented
from tests import tiny
from tests.tiny import K


def test_every_image_has_a_change_of_its_own():
    images = tiny.pictures(16, 16)[:1].expand(4, -1, -1, -1)
    np.random.seed(3)
    found = augmented(images)
    np.random.seed(3)
    changes = color_changes(np.random.random((4, NUMBERS)))
    assert found.equal(torch.stack([change_colors(images[0], change) for change in changes]))
    assert len({image.numpy().tobytes() for image in found}) > 2


def test_a_process_has_its_part_of_the_draws_of_the_global_batch(monkeypatch):
    images = tiny.pictures(16, 16)
    np.random.seed(3)
    whole = augmented(torch.cat([images, images]))
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr("ignite.distributed.get_rank", lambda rank=rank: rank)
        np.random.seed(3)
        assert augmented(images).equal(whole[2 * rank : 2 * rank + 2])


def test_it_changes_the_mixed_image_and_nothing_else():
    trainer, seen = tiny.trainer("online"), []
    ClassMix(K).attach(trainer)
    trainer.add_event_handler(ProdaEvents.TARGET_READY, lambda engine: seen.append(engine.state.target))
    ColorAugmentation().attach(trainer)
    trainer.add_event_handler(ProdaEvents.TARGET_READY, lambda engine: seen.append(engine.state.target))
    np.random.seed(0)
    trainer.run([tiny.batch()])
    before, after = seen
    assert (before.image != after.image).any() and after.image.shape == before.image.shape
    assert after.labels is before.labels and after.weights is before.weights
