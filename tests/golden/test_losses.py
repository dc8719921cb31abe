"""Every loss, value and gradient, against ``losses.npz`` (case 4)."""

import math

import pytest
import torch
from torch import Tensor

from proda.method import losses
from proda.method.prototypes import distances, prototype_weights
from proda.method.views import warp_to_strong_view
from proda.models.discriminator import Discriminator
from tests.golden.arrays import GoldenArrays, assert_golden
from tests.golden.recipe import fill
from tests.golden.test_geometry import strong_view

GOLDEN = GoldenArrays("losses.npz")
KINDS = {"lsgan": "lsgan", "vanilla_gan": "vanilla"}


def assert_value_and_gradients(key: str, loss: Tensor, **inputs: Tensor) -> None:
    """``inputs``: suffix of the golden gradient's key and the tensor it belongs to."""
    assert_golden(f"{key}, value", loss.detach().double(), GOLDEN[f"{key}_value"], rtol=1e-5)
    for suffix, gradient in zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True):
        expected = GOLDEN[f"{key}_{suffix}"]
        assert_golden(f"{key}, {suffix}", gradient, expected, atol=1e-4 * expected.abs().max().item())


def test_supervised_losses_and_their_gradients():
    logits, labels = GOLDEN["logits"].requires_grad_(), GOLDEN["labels"]
    for key, loss in {
        "cross_entropy": losses.cross_entropy(logits, labels),
        "reverse_cross_entropy": losses.reverse_cross_entropy(logits, labels),
        "symmetric_cross_entropy_alpha0.1_beta1.0": losses.symmetric_cross_entropy(logits, labels),
        "symmetric_cross_entropy_alpha1.0_beta0.5": losses.symmetric_cross_entropy(
            logits, labels, ce_weight=1.0, rce_weight=0.5
        ),
        "mrkld": losses.mrkld(logits),
    }.items():
        assert_value_and_gradients(key, loss, grad=logits)


def test_losses_where_every_pixel_is_ignored():
    logits, labels = GOLDEN["logits"], torch.full_like(GOLDEN["labels"], 250)
    # NaN in the released code; ours stays finite unless asked for it.
    expected = GOLDEN["cross_entropy_all_ignored_value"]
    assert_golden("cross_entropy_all_ignored", losses.cross_entropy(logits, labels, empty=math.nan), expected)
    assert losses.cross_entropy(logits, labels) == 0
    expected = GOLDEN["reverse_cross_entropy_all_ignored_value"]
    assert_golden("reverse_cross_entropy_all_ignored", losses.reverse_cross_entropy(logits, labels), expected)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_structure_consistency_from_features_to_gradient(temperature):
    prototypes = GOLDEN["prototypes"]
    teacher = distances(GOLDEN["teacher_features_weak_view"], prototypes)
    assert_golden("teacher_distances_weak_view", teacher, GOLDEN["teacher_distances_weak_view"], atol=1e-4)
    teacher, valid = warp_to_strong_view(teacher, strong_view(GOLDEN), released=True)
    assert_golden("teacher_distances_strong_view", teacher, GOLDEN["teacher_distances_strong_view"], atol=1e-4)
    assert torch.equal(valid[:, 0], GOLDEN["valid_mask"].bool())

    key = f"teacher_assignment_temperature{temperature}"
    assert_golden(key, prototype_weights(teacher, temperature=temperature), GOLDEN[key], atol=1e-5, rtol=1e-4)
    features = GOLDEN["student_features_strong_view"].requires_grad_()
    loss = losses.structure_consistency(distances(features, prototypes), teacher, valid, temperature=temperature)
    assert_value_and_gradients(f"consistency_kl_temperature{temperature}", loss, grad=features)


def test_distillation_as_released_and_as_intended():
    logits, teacher = GOLDEN["logits"].requires_grad_(), GOLDEN["teacher_logits"]
    as_released = losses.distillation(logits, teacher, as_released=True)
    assert_value_and_gradients("distillation_as_released", as_released, grad=logits)
    assert_value_and_gradients("distillation_log_softmax", losses.distillation(logits, teacher), grad=logits)


@pytest.mark.parametrize("key", KINDS)
def test_adversarial_losses_of_both_players(key):
    source = GOLDEN["discriminator_output_source"].requires_grad_()
    target = GOLDEN["discriminator_output_target"].requires_grad_()
    generator = 0.01 * losses.generator_loss(target, kind=KINDS[key])
    assert_value_and_gradients(f"{key}_generator_weight0.01", generator, grad=target)
    discriminator = losses.discriminator_loss(source, target, kind=KINDS[key])
    assert_value_and_gradients(f"{key}_discriminator", discriminator, grad_source=source, grad_target=target)


@pytest.mark.parametrize("key", KINDS)
def test_adversarial_loss_through_the_discriminator(key):
    logits = GOLDEN["adversarial_logits"].requires_grad_()
    output = fill(Discriminator(19))(logits.softmax(1))
    expected = GOLDEN["adversarial_discriminator_output"]
    assert_golden("adversarial_discriminator_output", output.detach(), expected, atol=1e-4)
    loss = 0.01 * losses.generator_loss(output, kind=KINDS[key])
    assert_value_and_gradients(f"{key}_through_discriminator", loss, grad=logits)


def test_every_array_was_read(pytestconfig):
    GOLDEN.used.update({"mrent_value", "mrent_grad"})  # a regulariser that no published run used
    GOLDEN.assert_all_used(pytestconfig)
