import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proda.method import IGNORE, losses

UNIFORM = torch.zeros(1, 4, 1, 2)  # four classes, two pixels


def test_cross_entropy_leaves_ignored_pixels_out_of_sum_and_number():
    logits = torch.randn(2, 5, 3, 4)
    labels = torch.randint(0, 5, (2, 3, 4))
    labels[:, 0] = IGNORE
    expected = torch.nn.functional.cross_entropy(logits[:, :, 1:], labels[:, 1:])
    torch.testing.assert_close(losses.cross_entropy(logits, labels), expected)


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.reverse_cross_entropy, losses.symmetric_cross_entropy])
def test_all_pixels_ignored_cost_nothing_and_give_zero_gradients(loss):
    logits, labels = torch.randn(1, 4, 1, 2, requires_grad=True), torch.tensor([[[IGNORE, IGNORE]]]).byte()
    value = loss(logits, labels)
    value.backward()
    assert value.item() == 0 and not logits.grad.any()
    if loss is losses.cross_entropy:
        assert loss(logits, labels, empty=2.0) == 2
        labels[0, 0, 0] = 1
        assert loss(logits, labels, empty=2.0) == loss(logits, labels)


def test_reverse_cross_entropy_by_a_slow_loop():
    logits, labels = torch.randn(2, 3, 2, 2), torch.tensor([[[0, 1], [2, IGNORE]], [[IGNORE, 2], [1, 1]]])
    total, pixels = 0.0, 0
    for image in range(2):
        for y in range(2):
            for x in range(2):
                if labels[image, y, x] != IGNORE:
                    p = logits[image, :, y, x].softmax(0)
                    total -= sum(p[k].item() * math.log(1 if k == labels[image, y, x] else 1e-4) for k in range(3))
                    pixels += 1
    assert losses.reverse_cross_entropy(logits, labels).item() == pytest.approx(total / pixels, rel=1e-5)


def test_reverse_cross_entropy_is_bounded_where_cross_entropy_is_not_and_holds_the_smallest_probability():
    label = torch.zeros(1, 1, 1, dtype=torch.long)
    wrong, right = (torch.tensor(values).reshape(1, 3, 1, 1) for values in ([0.0, 1e4, 0.0], [60.0, 0.0, 0.0]))
    assert losses.cross_entropy(wrong, label).item() == pytest.approx(1e4)
    found = [losses.reverse_cross_entropy(logits, label).item() / -math.log(1e-4) for logits in (wrong, right)]
    assert found == [pytest.approx(1, rel=1e-5), pytest.approx(2e-7, abs=0.5e-7)]  # of two other classes, next to 1


def test_symmetric_cross_entropy_is_the_weighted_sum():
    logits, labels = torch.randn(1, 4, 3, 3), torch.randint(0, 4, (1, 3, 3))
    expected = 0.3 * losses.cross_entropy(logits, labels) + 2 * losses.reverse_cross_entropy(logits, labels)
    assert losses.symmetric_cross_entropy(logits, labels, ce_weight=0.3, rce_weight=2) == expected


def test_the_regulariser_is_lowest_for_the_uniform_prediction():
    assert losses.mrkld(UNIFORM).item() == pytest.approx(math.log(4))
    assert losses.mrkld(UNIFORM + torch.tensor([9.0, 0, 0, 0]).reshape(1, 4, 1, 1)) > losses.mrkld(UNIFORM)


def test_a_given_number_of_pixels_replaces_that_of_the_valid_ones():
    """Two processes with one and three valid pixels together give the mean over all four."""
    logits, labels = torch.randn(2, 3, 1, 3), torch.tensor([[[0, IGNORE, IGNORE]], [[1, 2, 2]]])
    for loss in (losses.cross_entropy, losses.reverse_cross_entropy, losses.symmetric_cross_entropy):
        both = [loss(logits[i : i + 1], labels[i : i + 1], denominator=torch.tensor(2.0).double()) for i in range(2)]
        torch.testing.assert_close(sum(both) / 2, loss(logits, labels))

    student, teacher, valid = torch.rand(2, 3, 1, 3), torch.rand(2, 3, 1, 3), labels != IGNORE
    both = [
        losses.structure_consistency(student[i], teacher[i], valid[i], denominator=torch.tensor(2.0))
        for i in (slice(0, 1), slice(1, 2))
    ]
    torch.testing.assert_close(sum(both) / 2, losses.structure_consistency(student, teacher, valid))


def test_structure_consistency_is_the_divergence_of_valid_pixels_over_pixels_and_classes():
    # Assignments (1/2, 1/2) of the teacher and (1/4, 3/4) of the student; the second pixel is padding.
    teacher = torch.zeros(1, 2, 1, 2)
    student = torch.tensor([[math.log(3), 5.0], [0.0, -5.0]]).reshape(1, 2, 1, 2)
    valid = torch.tensor([True, False]).reshape(1, 1, 1, 2)
    divergence = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert losses.structure_consistency(student, teacher, valid).item() == pytest.approx(divergence / 2)
    assert losses.structure_consistency(student / 2, teacher, valid, temperature=2).item() == pytest.approx(
        divergence / 2
    )
    assert losses.structure_consistency(student, teacher, torch.zeros_like(valid)).item() == 0


def test_the_teacher_receives_no_gradient():
    student, teacher = torch.randn(1, 3, 2, 2, requires_grad=True), torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = losses.structure_consistency(student, teacher, torch.ones(1, 2, 2)) + losses.distillation(student, teacher)
    loss.backward()
    assert student.grad.any()
    assert teacher.grad is None


def test_distillation_is_zero_for_equal_logits_and_positive_otherwise():
    logits = torch.randn(1, 5, 3, 3)
    assert losses.distillation(logits, logits + 7).item() == pytest.approx(0, abs=1e-7)
    assert losses.distillation(logits, 2 * logits) > 0
    assert losses.distillation(logits, logits, as_released=True) < 0


def test_adversarial_losses_by_hand():
    half, one = torch.full((2, 1, 3, 3), 0.5), torch.ones(2, 1, 3, 3)
    assert losses.generator_loss(half).item() == 0.25
    assert losses.discriminator_loss(half, half).item() == 0.5
    assert losses.discriminator_loss(0 * one, one).item() == 0
    assert losses.generator_loss(0 * one, kind="vanilla").item() == pytest.approx(math.log(2))
    assert losses.discriminator_loss(0 * one, 0 * one, kind="vanilla").item() == pytest.approx(2 * math.log(2))
    with pytest.raises(ValueError, match='"lsgan" or "vanilla", got "wgan"'):
        losses.generator_loss(one, kind="wgan")


@given(st.sampled_from([torch.float32, torch.bfloat16]), st.floats(0, 30), st.integers(0, 2**31))
def test_losses_and_gradients_are_finite_under_extreme_logits(dtype, exponent, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(2, 5, 3, 4, generator=generator) * 10**exponent).to(dtype).requires_grad_()
    teacher = (torch.randn(2, 5, 3, 4, generator=generator) * 10**exponent).to(dtype)
    labels = torch.tensor([0, 1, 4, IGNORE])[torch.randint(0, 4, (2, 3, 4), generator=generator)]
    valid = labels != IGNORE
    for loss in (
        losses.cross_entropy(logits, labels),
        losses.reverse_cross_entropy(logits, labels),
        losses.symmetric_cross_entropy(logits, labels),
        losses.mrkld(logits),
        losses.structure_consistency(logits, teacher, valid),
        losses.distillation(logits, teacher),
        losses.distillation(logits, teacher, as_released=True),
    ):
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_cross_entropy_is_the_same_under_deterministic_algorithms():
    logits, labels = torch.randn(2, 5, 6, 7, requires_grad=True), torch.randint(0, 5, (2, 6, 7))
    labels[:, :2] = IGNORE
    values = []
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            loss = losses.cross_entropy(logits, labels)
            values.append((loss, *torch.autograd.grad(loss, logits)))
        finally:
            torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(values[0], values[1])


@pytest.mark.parametrize("kind", ["lsgan", "vanilla"])
def test_adversarial_losses_are_finite_under_extreme_scores(kind):
    for scores in (torch.tensor([1e15, -1e15]), torch.tensor([1e15, -1e15]).bfloat16()):  # squared, the end of float32
        assert losses.generator_loss(scores, kind=kind).isfinite()
        assert losses.discriminator_loss(scores, scores, kind=kind).isfinite()


LABELS = torch.randint(0, 3, (2, 4, 5))


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b: losses.symmetric_cross_entropy(a, LABELS),
        lambda a, b: losses.mrkld(a),
        lambda a, b: losses.structure_consistency(a, b, torch.ones(2, 4, 5, dtype=torch.bool)),
        losses.distillation,
        losses.discriminator_loss,
        lambda a, b: losses.generator_loss(a),
    ],
)
def test_half_precision_inputs_are_computed_in_float32(loss):
    inputs = (torch.randn(2, 3, 4, 5).bfloat16(), torch.randn(2, 3, 4, 5).bfloat16())
    assert torch.equal(loss(*inputs), loss(*(value.float() for value in inputs)))
