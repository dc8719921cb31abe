"""Training on labels."""

import pytest
import torch

from proda.engines.optimization import Precision
from proda.engines.supervised import supervised_trainer
from proda.method.tensors import resize
from tests import tiny
from tests.tiny import CPU, PRECISION, H, W


def test_the_step_is_plain_gradient_descent_on_the_cross_entropy():
    network, reference, batch = tiny.network(dropout=0.0), tiny.network(dropout=0.0), tiny.batch()
    supervised_trainer(network, tiny.sgd(network, lr=0.5), PRECISION).run([batch])

    reference.train()
    logits = resize(reference(batch["source"]["image"].float() / 255).logits, (H, W))
    loss = torch.nn.functional.cross_entropy(logits, batch["source"]["labels"].long(), ignore_index=250)
    loss.backward()
    for (name, moved), start in zip(network.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(moved, start - 0.5 * start.grad, msg=name)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_computes_in_it_and_keeps_losses_and_weights_in_float32(amp):
    network = tiny.network()
    seen = []
    network.layer5.register_forward_hook(lambda _module, _inputs, out: seen.append(out.logits.dtype))
    state = supervised_trainer(network, tiny.sgd(network), Precision(CPU, amp)).run([tiny.batch()])
    assert seen == [{"bf16": torch.bfloat16, "fp16": torch.float16}[amp]]
    assert state.output["loss"].dtype == state.output["source_logits"].dtype == torch.float32
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in network.parameters())
