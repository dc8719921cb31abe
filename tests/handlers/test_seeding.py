"""Random numbers of an iteration."""

import torch
from ignite.engine import Engine

from proda.handlers.seeding import SeedIterations


def test_random_numbers_follow_from_seed_and_iteration_alone():
    def draws(seed: int, first: int) -> list[float]:
        found: list[float] = []
        engine = Engine(lambda *_: found.append(torch.rand(()).item()))
        SeedIterations(seed).attach(engine)
        if first:
            engine.load_state_dict({"epoch_length": 4, "max_epochs": 1, "iteration": first})
        engine.run([None] * 4)
        return found

    whole = draws(0, 0)
    assert draws(0, 2) == whole[2:] and draws(1, 0) != whole and len(set(whole)) == 4
