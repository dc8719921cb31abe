import copy

import pytest
import torch

from proda.models.build import build_network
from proda.run.live_bytes import LiveBytes, fake_tensors, tensor_bytes


def forward(network: torch.nn.Module, device: str, amp: bool) -> torch.Tensor:
    """Logits of a batch; autocast is set without asking whether the device exists, as torch.autocast would."""
    image = torch.rand(2, 3, 256, 384, device=device)
    torch.set_autocast_dtype(device, torch.bfloat16)
    torch.set_autocast_enabled(device, amp)
    try:
        return network(image).logits
    finally:
        torch.set_autocast_enabled(device, False)
        torch.clear_autocast_cache()


def test_a_storage_counts_once_and_until_its_last_view_is_gone():
    with LiveBytes() as count:
        numbers = torch.zeros(10, 10)
        view = numbers[2:4]
        assert (count.live, count.peak) == (400, 400)
        del numbers
        assert count.live == 400
        more = view + 1
        assert count.live == 480
        del view, more
    assert (count.live, count.peak) == (0, 480)


def test_the_peak_is_that_since_its_last_reset():
    with LiveBytes() as count:
        torch.zeros(100)
        assert (count.live, count.peak) == (0, 400)
        kept = torch.zeros(10)
        count.reset_peak()
        assert count.peak == 40
    assert len(kept) == 10


def test_a_fake_network_takes_no_memory_and_counts_what_a_real_one_does():
    def count_one() -> list[int]:
        network = build_network("tiny", 5)
        found = [count.live]
        count.reset_peak()
        image = torch.rand(2, 3, 64, 96)
        network(image).logits.sum().backward()
        return [*found, count.live, count.peak]

    with LiveBytes() as count:
        real = count_one()
    with fake_tensors() as count:
        assert count_one() == real
    assert real[0] > 0 and real[2] > 5 * real[0]


def test_half_precision_counts_as_on_cuda():
    # Backward passes on fake CUDA tensors need a GPU, but forward passes and what they keep for it do not.
    kept = {}
    for device in ("cpu", "cuda"):
        for amp in (False, True):
            with fake_tensors() as count:
                with torch.device(device):
                    network = build_network("resnet50", 19)
                before = count.live
                output = forward(network, device, amp)
                kept[device, amp] = count.live - before
                assert output.dtype == (torch.bfloat16 if amp else torch.float32)
                del output
    assert kept["cpu", False] == kept["cuda", False]
    assert kept["cpu", True] == pytest.approx(kept["cuda", True], rel=0.01)
    assert kept["cpu", True] < 0.8 * kept["cpu", False]


def test_fake_networks_can_be_copied():
    with fake_tensors():
        network = build_network("tiny", 5).requires_grad_(False)
        network.conv1.requires_grad_(True)
        copied = copy.deepcopy(network)
        assert {name: p.requires_grad for name, p in copied.named_parameters()} == {
            name: p.requires_grad for name, p in network.named_parameters()
        }
        state = [network.state_dict(), copied.state_dict()]
        assert tensor_bytes(state) == 2 * tensor_bytes(state[0])


def test_bytes_of_nested_tensors_count_shared_storages_once():
    numbers = torch.zeros(10)
    assert tensor_bytes({"a": [numbers, numbers[:2]], "b": (torch.zeros(3, dtype=torch.uint8), "text")}) == 43
