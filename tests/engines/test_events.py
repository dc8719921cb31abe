"""Events, losses attached by users, and the parts that an engine saves in checkpoints."""

import gc
import weakref

import pytest
import torch
from ignite.engine import Engine
from ignite.handlers import TensorboardLogger
from ignite.handlers.tensorboard_logger import OutputHandler

from proda.engines.adversarial import adversarial_trainer
from proda.engines.denoise import denoise_trainer
from proda.engines.distill import distill_trainer
from proda.engines.events import ProdaEvents, Trainer, average_losses, remember
from proda.engines.supervised import supervised_trainer
from proda.models.discriminator import Discriminator
from tests import small_runs, tiny
from tests.tiny import PRECISION, K

# name -> trainer of a student, and a tensor of its engine.state.graph
TRAINERS = {
    "supervised": (lambda student, optimizer: supervised_trainer(student, optimizer, PRECISION), "source_logits"),
    "adversarial": (lambda student, optimizer: warm_up(student, optimizer), "target_logits"),
    "denoise": (
        lambda student, optimizer: denoise_trainer(student, tiny.network(1), torch.ones(K, 32), optimizer, PRECISION),
        "target_features",
    ),
    "distill": (
        lambda student, optimizer: distill_trainer(student, tiny.network(1), optimizer, PRECISION),
        "target_logits",
    ),
}


def warm_up(student, optimizer) -> Engine:
    discriminator = Discriminator(K, width=4)
    return adversarial_trainer(student, discriminator, optimizer, tiny.sgd(discriminator), PRECISION)


def stepping() -> Engine:
    """An engine whose steps only fire the event."""

    def step(engine: Engine, _batch: None) -> dict:
        engine.fire_event(ProdaEvents.OPTIMIZER_STEPPED)
        return {}

    return Trainer(step)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every": 2}, [2, 4, 6]),
        ({"once": 3}, [3]),
        ({"after": 4}, [5, 6]),
        ({"before": 3}, [1, 2]),
        ({"event_filter": lambda _engine, number: number in (1, 5)}, [1, 5]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_filters_of_events_count_iterations(options, expected):
    engine, seen = stepping(), []
    engine.add_event_handler(ProdaEvents.OPTIMIZER_STEPPED(**options), lambda: seen.append(engine.state.iteration))
    engine.run([None] * 6)
    assert seen == expected


def test_an_ignite_logger_writes_at_our_events_under_the_iteration(tmp_path):
    engine = stepping()
    engine.add_event_handler(ProdaEvents.OPTIMIZER_STEPPED(every=2), lambda: engine.fire_event(ProdaEvents.VALIDATED))
    with TensorboardLogger(log_dir=tmp_path) as logger:
        handler = OutputHandler(tag="scores", output_transform=lambda _: {"miou": engine.state.iteration / 10})
        logger.attach(engine, handler, ProdaEvents.VALIDATED)
        engine.run([None] * 4)
    assert small_runs.scalars(tmp_path) == {"scores/miou": {2: pytest.approx(0.2), 4: pytest.approx(0.4)}}


def test_remembered_parts_need_a_state_dict_and_unique_names():
    engine, layer = stepping(), torch.nn.Linear(1, 1)
    remember(engine, layer=layer)
    remember(engine, layer=layer)  # registering the same object again is allowed
    assert engine.state.remembered == {"layer": layer}
    with pytest.raises(ValueError, match="already remembers another 'layer'"):
        remember(engine, layer=torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="best: float has no state_dict"):
        remember(engine, best=0.5)
    assert engine.state.remembered == {"layer": layer}


@pytest.mark.parametrize("name", TRAINERS)
def test_trainers_remember_student_optimizer_and_precision(name):
    student = tiny.network()
    optimizer = tiny.sgd(student)
    remembered = TRAINERS[name][0](student, optimizer).state.remembered
    assert (remembered["student"], remembered["optimizer"], remembered["precision"]) == (student, optimizer, PRECISION)
    assert ("discriminator" in remembered) == ("discriminator_optimizer" in remembered) == (name == "adversarial")


def gradients(name: str, batch: dict, term=None) -> tuple[list[torch.Tensor], dict, Engine]:
    """The student's gradients after one iteration without randomness, and the output."""
    torch.manual_seed(3)
    student = tiny.network(dropout=0.0)
    trainer = TRAINERS[name][0](student, tiny.sgd(student))
    if term:
        trainer.add_event_handler(ProdaEvents.LOSSES_READY, term)
    out = trainer.run([batch]).output
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in student.parameters()], out, trainer


@pytest.mark.parametrize("name", TRAINERS)
def test_a_users_loss_adds_its_gradient_and_is_part_of_the_loss(name):
    """The gradients with the loss are the sum of those without it and its own."""
    batch, key = tiny.batch(), TRAINERS[name][1]

    def brightness(engine: Engine) -> None:
        engine.state.losses["mine"] = 0.5 * engine.state.graph[key].square().mean()

    without, before, _ = gradients(name, batch)
    together, out, trainer = gradients(name, batch, brightness)
    assert set(out) - set(before) == {"loss_mine"}
    assert out["loss_mine"] > 0
    torch.testing.assert_close(out["loss"], before["loss"] + out["loss_mine"])
    tiny.assert_detached(out)
    assert trainer.state.losses is None and trainer.state.graph is None
    own = own_gradients(name, batch, key)
    assert any(gradient.abs().max() > 1e-6 for gradient in own)
    for ours, plain, mine in zip(together, without, own, strict=True):
        torch.testing.assert_close(ours, plain + mine, rtol=1e-3, atol=1e-6)


def own_gradients(name: str, batch: dict, key: str) -> list[torch.Tensor]:
    """Gradients of the term alone, by autograd at ``LOSSES_READY``."""
    found: list[torch.Tensor] = []
    torch.manual_seed(3)
    student = tiny.network(dropout=0.0)
    trainer = TRAINERS[name][0](student, tiny.sgd(student))

    @trainer.on(ProdaEvents.LOSSES_READY)
    def differentiate(engine: Engine) -> None:
        term = 0.5 * engine.state.graph[key].square().mean()
        learning = [p for p in student.parameters() if p.requires_grad]  # batch norm may be frozen
        computed = iter(torch.autograd.grad(term, learning, retain_graph=True, materialize_grads=True))
        found.extend(next(computed) if p.requires_grad else torch.zeros_like(p) for p in student.parameters())

    trainer.run([batch])
    return found


def test_a_users_loss_of_a_weight_changes_it_by_the_closed_form():
    moved = {}
    for weight in (0.0, 0.25):
        torch.manual_seed(3)
        student = tiny.network(dropout=0.0)
        start = student.conv1.weight.detach().clone()
        trainer = supervised_trainer(student, tiny.sgd(student, 0.5), PRECISION)

        @trainer.on(ProdaEvents.LOSSES_READY)
        def decay(engine: Engine, weight=weight, student=student) -> None:
            engine.state.losses["decay"] = weight * student.conv1.weight.square().sum()

        torch.manual_seed(4)
        trainer.run([tiny.batch()])
        moved[weight] = student.conv1.weight.detach()
    torch.testing.assert_close(moved[0.25], moved[0.0] - 0.5 * 0.25 * 2 * start)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_term_may_be_replaced_and_nothing_keeps_the_graph_afterwards(name):
    kept = []

    def halve(engine: Engine) -> None:
        first = next(iter(engine.state.losses))
        engine.state.losses[first] = 0.5 * engine.state.losses[first]
        kept.append(first)
        kept.extend(weakref.ref(tensor) for tensor in engine.state.graph.values())

    batch = tiny.batch()
    _, before, _ = gradients(name, batch)
    _, after, trainer = gradients(name, batch, halve)
    torch.testing.assert_close(after[f"loss_{kept[0]}"], 0.5 * before[f"loss_{kept[0]}"])
    gc.collect()
    assert all(reference() is None for reference in kept[1:])
    assert trainer.state.iteration == 1


def test_losses_may_be_numbers_and_maps():
    output = {"loss": torch.tensor(1.0), "loss_mine": 0.25, "loss_map": torch.tensor([[1, 2], [3, 4]]), "name": "x"}
    average_losses(output)
    assert output.pop("name") == "x" and all(value.ndim == 0 for value in output.values())
    assert {name: value.item() for name, value in output.items()} == {"loss": 1, "loss_mine": 0.25, "loss_map": 2.5}
    average_losses(None)
    average_losses({"logits": 1})


def test_losses_of_one_process_stay_on_their_device(monkeypatch):
    """Ignite's device is a GPU wherever there is one, although ``--device=cpu`` may ask for the CPU."""
    monkeypatch.setattr("proda.engines.events.idist.device", lambda: torch.device("meta"))
    output = {"loss": torch.tensor(1.0), "loss_mine": 0.25}
    average_losses(output)
    assert {value.device.type for value in output.values()} == {"cpu"}
    output = {"loss": torch.ones((), device="meta"), "loss_mine": 0.25}
    average_losses(output)
    assert {value.device.type for value in output.values()} == {"meta"}


def _average(rank: int, folder) -> None:
    output = {"loss_mine": float(rank), "loss_map": torch.full((2, 2), 1.0 + rank), "loss": torch.tensor(2.0 * rank)}
    average_losses(output)
    torch.save(output, folder / f"{rank}.pt")


def test_numbers_and_maps_are_averaged_over_processes(tmp_path):
    import ignite.distributed as idist

    idist.spawn("gloo", _average, args=(tmp_path,), nproc_per_node=2, start_method="spawn")
    for rank in (0, 1):
        output = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        found = {name: value.item() for name, value in output.items()}
        assert found == {"loss_mine": 0.5, "loss_map": 1.5, "loss": 1}


@pytest.mark.parametrize("name", TRAINERS)
def test_a_student_that_was_left_in_evaluation_mode_is_trained_in_training_mode(name):
    student, modes = tiny.network().eval(), []
    student.register_forward_hook(lambda module, *_: modes.append(module.training))
    TRAINERS[name][0](student, tiny.sgd(student)).run([tiny.batch()])
    assert modes and all(modes)
