"""Events, losses attached by users, and the parts that an engine saves in checkpoints."""

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine

from proda.engines.events import ProdaEvents, Trainer, average_losses, remember


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
    idist.spawn("gloo", _average, args=(tmp_path,), nproc_per_node=2, start_method="spawn")
    for rank in (0, 1):
        output = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        found = {name: value.item() for name, value in output.items()}
        assert found == {"loss_mine": 0.5, "loss_map": 1.5, "loss": 1}
