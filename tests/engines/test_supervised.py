"""Training on labels."""

import pytest
import torch
from ignite.engine import Events

from proda.engines.optimization import Precision, StudentOptions
from proda.engines.supervised import supervised_trainer
from proda.method.tensors import resize
from tests import tiny
from tests.tiny import CPU, PRECISION, B, H, K, W


def test_events_fire_in_their_order_and_the_output_grows_with_them():
    network = tiny.network()
    trainer = supervised_trainer(network, tiny.sgd(network), PRECISION)
    spy = tiny.Spy(trainer)
    trainer.run([tiny.batch()])
    assert spy.names == [
        "ITERATION_STARTED",
        "EXTRA_LOSSES",
        "SOURCE_LOSSES_READY",
        "LOSSES_READY",
        "SOURCE_BACKWARD_DONE",
        "BACKWARD_DONE",
        "OPTIMIZER_STEPPED",
        "ITERATION_COMPLETED",
    ]
    assert spy.keys["SOURCE_BACKWARD_DONE"] == {"loss", "loss_source", "source_logits"}
    assert spy.keys["BACKWARD_DONE"] == {"loss", "loss_source", "source_logits"}


def test_the_output_is_as_documented_and_holds_no_graph():
    network = tiny.network()
    state = supervised_trainer(network, tiny.sgd(network), PRECISION).run([tiny.batch()])
    tiny.assert_detached(state.output)
    assert tiny.shapes(state.output) == {"loss": (), "loss_source": (), "source_logits": (B, K, H, W)}
    assert state.output["loss"] == state.output["loss_source"]


def test_the_step_is_plain_gradient_descent_on_the_cross_entropy():
    network, reference, batch = tiny.network(dropout=0.0), tiny.network(dropout=0.0), tiny.batch()
    supervised_trainer(network, tiny.sgd(network, lr=0.5), PRECISION).run([batch])

    reference.train()
    logits = resize(reference(batch["source"]["image"].float() / 255).logits, (H, W))
    loss = torch.nn.functional.cross_entropy(logits, batch["source"]["labels"].long(), ignore_index=250)
    loss.backward()
    for (name, moved), start in zip(network.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(moved, start - 0.5 * start.grad, msg=name)


def test_ten_iterations_on_one_batch_lower_the_loss():
    network, batch, losses = tiny.network(dropout=0.0), tiny.batch(), []
    trainer = supervised_trainer(network, tiny.sgd(network, lr=0.1), PRECISION)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: losses.append(trainer.state.output["loss"].item()))
    trainer.run([batch] * 10)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_computes_in_it_and_keeps_losses_and_weights_in_float32(amp):
    network = tiny.network()
    seen = []
    network.layer5.register_forward_hook(lambda _module, _inputs, out: seen.append(out.logits.dtype))
    state = supervised_trainer(network, tiny.sgd(network), Precision(CPU, amp)).run([tiny.batch()])
    assert seen == [{"bf16": torch.bfloat16, "fp16": torch.float16}[amp]]
    assert state.output["loss"].dtype == state.output["source_logits"].dtype == torch.float32
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in network.parameters())


def test_frozen_batch_norm_keeps_statistics_and_scales():
    network, untouched = tiny.network(), tiny.network()
    supervised_trainer(network, tiny.sgd(network), PRECISION, StudentOptions(freeze_bn=True)).run([tiny.batch()])
    for name in ("running_mean", "running_var", "weight", "bias"):
        assert torch.equal(getattr(network.bn1, name), getattr(untouched.bn1, name)), name
    assert not torch.equal(network.conv1.weight, untouched.conv1.weight)
