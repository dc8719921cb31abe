"""ClassMix as a handler: what the student is trained on afterwards."""

import pytest
import torch

from proda.engines.events import ProdaEvents
from proda.handlers.class_mix import ClassMix
from proda.method import IGNORE
from tests import tiny
from tests.tiny import B, H, K, W


def trainer_of(stage):
    options = {"confidence": 0.21} if stage == "online" else {}
    return tiny.trainer(stage, tiny.network(dropout=0.0), **options)


def mixed(stage, batch):
    """The target before and after mixing, and the output."""
    trainer, seen = trainer_of(stage), []
    trainer.add_event_handler(ProdaEvents.EXTRA_LOSSES, lambda engine: seen.append(engine.state.target))
    ClassMix(K).attach(trainer)
    trainer.add_event_handler(ProdaEvents.TARGET_READY, lambda engine: seen.append(engine.state.target))
    output = trainer.run([batch]).output
    return *seen, output


def test_pixels_of_half_of_the_classes_come_from_the_source_with_weight_one():
    batch = tiny.batch()
    before, after, output = mixed("online", batch)
    pasted, source = output["pasted"], batch["source"]
    assert pasted.shape == (B, H, W) and not pasted[source["labels"] == IGNORE].any()
    for number in range(B):
        chosen = set(source["labels"][number][pasted[number]].tolist())
        assert len(chosen) == 3  # of 5
        assert pasted[number].equal(torch.isin(source["labels"][number], torch.tensor(sorted(chosen))))
    assert after.image.equal(torch.where(pasted[:, None], source["image"], before.image))
    assert after.labels.equal(torch.where(pasted, source["labels"].long(), before.labels))
    assert before.weights.max() < 1 and after.weights.equal(torch.where(pasted, 1.0, before.weights))
    assert output["pseudo_labels"].equal(before.labels)  # what the teacher said stays what is judged


@pytest.mark.parametrize(("stage", "view"), [("stage1", "image"), ("stage2", "strong_image")])
def test_stages_with_labels_at_a_quarter_of_the_resolution(stage, view):
    batch = tiny.batch()
    before, after, output = mixed(stage, batch)
    assert before.image.equal(batch["target"][view]) and before.weights is None is after.weights
    small = batch["source"]["labels"][:, ::4, ::4].long()
    assert output["pasted"].shape == (B, H // 4, W // 4) == after.labels.shape
    assert after.labels.equal(torch.where(output["pasted"], small, before.labels))
    if stage == "stage2":  # whose teacher sees the mixed image
        with torch.no_grad():
            expected = tiny.network(1).eval()(after.image.float() / 255).logits
        torch.testing.assert_close(output["teacher_logits"], expected)
    changed = (after.image != before.image).any(1)
    assert changed.any() and not changed[:, ::4, ::4][~output["pasted"]].any()


def test_crops_whose_sides_are_no_multiples_of_four():
    batch = tiny.batch()
    batch["source"] = {name: maps[..., :30, :62] for name, maps in batch["source"].items()}
    batch["target"]["image"] = batch["target"]["image"][..., :30, :62]
    _, after, output = mixed("online", batch)
    assert output["pasted"].shape == (B, 30, 62) == after.labels.shape
    trainer = trainer_of("online")
    ClassMix(K).attach(trainer)

    @trainer.on(ProdaEvents.EXTRA_LOSSES)
    def quarter(engine):
        engine.state.target = engine.state.target._replace(
            labels=torch.zeros(B, 7, 15, dtype=torch.long), weights=torch.ones(B, 7, 15)
        )

    @trainer.on(ProdaEvents.TARGET_READY)
    def seen(engine):
        assert engine.state.target.labels.shape == (B, 7, 15) == engine.state.output["pasted"].shape
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):  # seen enough
        trainer.run([batch])


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_stages_without_weights_refuse_those_of_a_handler(stage):
    trainer = trainer_of(stage)

    @trainer.on(ProdaEvents.TARGET_READY)
    def weigh(engine):
        target = engine.state.target
        engine.state.target = target._replace(weights=torch.ones_like(target.labels, dtype=torch.float32))

    with pytest.raises(ValueError, match="which this stage does not use"):
        trainer.run([tiny.batch()])
