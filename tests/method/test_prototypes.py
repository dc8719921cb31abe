import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proda.method.prototypes import class_means, distances, prototype_weights, update_prototypes


def one_hot_logits(labels, num_classes):
    """Logits whose arg-max is ``labels`` [B, h, w]."""
    return 9.0 * torch.nn.functional.one_hot(labels, num_classes).movedim(3, 1)


def test_class_means_use_only_right_and_confident_pixels():
    features = torch.arange(4.0).reshape(1, 1, 1, 4)
    logits = torch.tensor([[3.0, 3.0, 0.1, 3.0], [0.0, 0.0, 0.0, 0.0]]).reshape(1, 2, 1, 4)  # all of class 0
    labels = torch.tensor([[[0, 0, 0, 250]]])
    assert class_means(features, logits, min_pixels=4).means[0, 0, 0] == 1.5
    assert class_means(features, logits, labels, min_pixels=3).means[0, 0, 0] == 1
    # The third pixel is not confident: it counts as one of the three, and is left out of the mean.
    assert class_means(features, logits, labels, min_pixels=3, min_confidence=0.9).means[0, 0, 0] == 0.5
    assert not class_means(features, logits, min_confidence=0.99, min_pixels=1).present.any()


def test_class_means_by_a_slow_loop():
    features, logits = torch.randn(3, 6, 9, 11), torch.randn(3, 4, 9, 11)
    labels = torch.randint(0, 4, (3, 9, 11))
    for given_labels, min_pixels in ((None, 24), (labels, 6)):
        means, present = class_means(features, logits, given_labels, min_confidence=0.4, min_pixels=min_pixels)
        for image in range(3):
            for k in range(4):
                own = logits[image].argmax(0) == k
                if given_labels is not None:
                    own = own & (labels[image] == k)
                sure = own & (logits[image].softmax(0).amax(0) >= 0.4)
                assert present[image, k] == (own.sum() >= min_pixels and sure.any())
                if present[image, k]:
                    torch.testing.assert_close(means[image, k], features[image][:, sure].mean(1))
        assert present.any() and not present.all()


def test_moving_average_by_hand():
    means, present = torch.ones(2, 3, 2), torch.tensor([[True, False, True], [True, False, False]])
    prototypes, counts = update_prototypes(torch.zeros(3, 2), torch.zeros(3), means, present, momentum=0.5)
    assert prototypes[:, 0].tolist() == [0.75, 0.0, 0.5]  # 1 - 0.5**2, never seen, seen once
    assert counts.tolist() == [2, 0, 1]
    running, _ = update_prototypes(torch.zeros(3, 2), torch.zeros(3), means, present, momentum=None)
    assert running[:, 0].tolist() == [1, 0, 1]


@pytest.mark.parametrize("momentum", [0.0, -0.1, 1.5])
def test_a_momentum_outside_0_to_1_is_refused(momentum):
    with pytest.raises(ValueError, match=f"got {momentum}"):
        update_prototypes(
            torch.zeros(1, 1), torch.zeros(1), torch.ones(1, 1, 1), torch.ones(1, 1).bool(), momentum=momentum
        )


@given(
    momentum=st.sampled_from([None, 1e-4, 0.3, 1.0]),
    start_mean=st.sampled_from([0, 3]),
    cap=st.sampled_from([4, 3000]),
    updates=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
def test_updates_at_once_equal_updates_one_after_another(momentum, start_mean, cap, updates, seed):
    generator = torch.Generator().manual_seed(seed)
    prototypes, counts = torch.randn(3, 4, generator=generator), torch.randint(0, cap + 1, (3,), generator=generator)
    means = torch.randint(-2, 3, (updates, 3, 4), generator=generator).float()  # often of sum 0: not an observation
    present = torch.rand(updates, 3, generator=generator) < 0.6

    before, slow, slow_counts = prototypes.clone(), prototypes.double(), counts.tolist()
    for n in range(updates):
        for k in range(3):
            if present[n, k] and means[n, k].sum() != 0:
                count = slow_counts[k]
                share = 1 / (count + 1) if momentum is None or count < start_mean else momentum
                slow[k] = (1 - share) * slow[k] + share * means[n, k]
                slow_counts[k] = min(count + 1, cap)

    rule = dict(momentum=momentum, start_mean=start_mean, cap=cap)
    fast, fast_counts = update_prototypes(prototypes, counts.float(), means, present, **rule)
    torch.testing.assert_close(fast, slow.float(), atol=1e-5, rtol=0)
    assert fast_counts.tolist() == slow_counts
    assert torch.equal(prototypes, before)  # the arguments are left alone
    unseen = (present & (means.sum(2) != 0)).sum(0) == 0
    assert torch.equal(fast[unseen], prototypes[unseen])


@pytest.mark.parametrize("shift", [0, 1000])
def test_distances_equal_those_of_cdist_also_far_from_the_origin(shift):
    features, prototypes = torch.randn(2, 16, 5, 7), torch.randn(6, 16)
    pixels = features.permute(0, 2, 3, 1).reshape(-1, 16).double()
    expected = torch.cdist(pixels, prototypes.double(), compute_mode="donot_use_mm_for_euclid_dist")
    actual = distances(features + shift, prototypes + shift).permute(0, 2, 3, 1).reshape(-1, 6)
    torch.testing.assert_close(actual, expected.float(), atol=1e-3 if shift else 1e-5, rtol=0)


def test_distances_have_a_finite_gradient_where_feature_and_prototype_coincide():
    features = torch.ones(1, 3, 2, 2, requires_grad=True)
    distances(features, torch.tensor([[1.0, 1, 1], [0, 0, 0]])).sum().backward()
    assert features.grad.isfinite().all()
    # Only the second prototype pulls, along the unit vector towards the feature.
    torch.testing.assert_close(features.grad, torch.full_like(features, 3**-0.5))

    features.grad = None
    found = distances(features, torch.ones(1, 3))  # without rounding: the root of the lower bound
    found.sum().backward()
    assert found.flatten().tolist() == pytest.approx([1e-6] * 4) and not features.grad.any()


def test_matrix_products_stay_in_full_precision_under_autocast():
    features, prototypes, logits = torch.randn(1, 32, 8, 8), torch.randn(5, 32), torch.randn(1, 5, 8, 8)
    expected_distances, expected_means = distances(features, prototypes), class_means(features, logits, min_pixels=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(distances(features, prototypes), expected_distances)
        assert torch.equal(class_means(features, logits, min_pixels=1).means, expected_means.means)


def test_prototype_weights_by_hand():
    log = torch.tensor([4.0, 2.0, 2.0]).log().reshape(1, 3, 1, 1)
    torch.testing.assert_close(prototype_weights(-log).flatten(), torch.tensor([0.5, 0.25, 0.25]))
    torch.testing.assert_close(prototype_weights(-log / 2, temperature=2).flatten(), torch.tensor([0.5, 0.25, 0.25]))


@given(st.floats(0, 1e6), st.floats(0.01, 10))
def test_prototype_weights_sum_to_one_however_far_the_prototypes(distance, temperature):
    weights = prototype_weights(distance * torch.rand(2, 4, 3, 3), temperature=temperature)
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 3, 3))


def test_one_confident_pixel_of_a_class_that_is_large_enough_is_its_mean_and_the_limit_counts():
    logits, features = torch.zeros(1, 2, 1, 12), torch.randn(1, 4, 1, 12)
    logits[0, 0] = 1.0
    logits[0, 0, 0, 3] = 9.0
    means, present = class_means(features, logits, min_confidence=0.9)
    assert present.tolist() == [[True, False]]
    torch.testing.assert_close(means[0, 0], features[0, :, 0, 3])
    assert class_means(features, torch.zeros(1, 2, 1, 12), min_confidence=0.5).present[0, 0]


def test_confidence_is_compared_in_float32():
    logits = torch.tensor([2.203125, 0.0]).bfloat16().reshape(1, 2, 1, 1)  # 0.9005, which bfloat16 rounds to 0.9023
    assert not class_means(torch.ones(1, 4, 1, 1), logits, min_confidence=0.901, min_pixels=1).present.any()


def test_half_precision_inputs_give_what_float32_gives():
    features, logits, prototypes = torch.randn(1, 4, 6, 8), 3 * torch.randn(1, 3, 6, 8), torch.randn(3, 4)
    features, logits, prototypes = features.bfloat16(), logits.bfloat16(), prototypes.bfloat16()
    for confidence in (0.0, 0.6, 0.7, 0.8, 0.9):
        ours = class_means(features, logits, min_confidence=confidence, min_pixels=1)
        assert torch.equal(
            ours.means, class_means(features.float(), logits.float(), min_confidence=confidence, min_pixels=1).means
        )
    found = distances(features, prototypes)
    assert torch.equal(found, distances(features.float(), prototypes.float()))
    lowered = found.bfloat16()
    assert torch.equal(prototype_weights(lowered), prototype_weights(lowered.float()))
