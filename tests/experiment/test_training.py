"""What every training run shares: its length, the order of its handlers, clipping."""

from functools import wraps

import pytest
import torch

from proda.engines.supervised import supervised_trainer
from proda.experiment.config import TrainConfig
from proda.experiment.training import clip_gradients, run_length
from proda.handlers.batch_norm import TargetStatistics
from proda.handlers.checkpoints import NewestFiles
from proda.handlers.ema import EMATeacher
from proda.handlers.monitoring import StopOnNan
from proda.handlers.prototypes import PrototypeEMA
from proda.handlers.validation import Validation
from tests import small_runs, tiny
from tests.tiny import CPU, PRECISION


def test_the_incomplete_last_batch_of_an_epoch_is_dropped():
    assert run_length(TrainConfig(batch_size=4, epochs=3), 11) == (2, 6)
    assert run_length(TrainConfig(batch_size=4, epochs=3, iterations=7), 11) == (2, 7)


def test_images_that_make_no_batch_are_refused():
    with pytest.raises(ValueError, match="--batch_size=4 is more than the 3 training images"):
        run_length(TrainConfig(batch_size=4), 3)


def test_prototypes_move_before_the_teacher_and_nothing_is_judged_or_saved_before(tmp_path, monkeypatch):
    order = []
    moments = [(PrototypeEMA, "__call__"), (EMATeacher, "copy_buffers"), (StopOnNan, "__call__")]
    moments += [(Validation, "__call__"), (TargetStatistics, "__call__"), (NewestFiles, "__call__")]

    def noted(cls: type, method: str):
        original = getattr(cls, method)

        @wraps(original)
        def note(self, *args, **settings):
            order.append(cls)
            return original(self, *args, **settings)

        return note

    for cls, method in moments:
        monkeypatch.setattr(cls, method, noted(cls, method))
    data, weights = small_runs.write_data(tmp_path / "data"), small_runs.write_weights(tmp_path / "before.pt")
    small_runs.train("stage1_denoise", data, weights, tmp_path / "run", iterations=2, val_every=1, checkpoint_every=1)
    assert order[:12] == [cls for cls, _ in moments] * 2


@pytest.mark.parametrize(("largest", "clipped"), [(0.01, True), (1e6, False), (0.0, False)])
def test_gradients_are_clipped_to_their_largest_norm_between_backward_and_step(largest, clipped):
    norms = {}
    for limit in (0.0, largest):
        network = tiny.network(dropout=0.0)
        trainer = supervised_trainer(network, tiny.sgd(network), PRECISION, CPU)
        clip_gradients(trainer, network, limit)
        torch.manual_seed(0)
        trainer.run([tiny.batch()])
        norms[limit] = torch.stack([p.grad.norm() for p in network.parameters()]).norm().item()
    assert norms[largest] == pytest.approx(0.01 if clipped else norms[0.0], rel=1e-3)
    assert norms[0.0] > 0.01
