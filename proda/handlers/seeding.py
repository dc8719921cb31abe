"""Random numbers that depend only on the seed and the iteration."""

from ignite.engine import Events
from ignite.utils import manual_seed

from proda.engines.events import Trainer


class SeedIterations:
    """Seeds all generators at the start of each iteration from the run's seed and the iteration's number.

    A resumed run therefore draws the same numbers as an uninterrupted one, without saved generator states. All
    processes draw the same numbers; values for each image are drawn for the whole global batch (see ``Dropout``).
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, trainer: Trainer) -> None:
        trainer.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, trainer: Trainer) -> None:
        manual_seed((self.seed * 1_000_003 + trainer.state.iteration * 1_009) % 2**32)
