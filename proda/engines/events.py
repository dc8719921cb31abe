"""The moments of the method that Ignite's own events do not name.

Within one iteration they fire in the order of the class body, those that the stage has. ``engine.state.output`` is a
dict that grows as the iteration goes: at each event it holds what has been computed so far (the trainer factories
list its keys), detached from the graph.
"""

from ignite.engine import Engine, EventEnum


class ProdaEvents(EventEnum):
    """Attach with ``@trainer.on(ProdaEvents.LABELS_RECTIFIED)``."""

    PSEUDO_LABELS_REFRESHED = "pseudo_labels_refreshed"  # new labels of the target set are on disk (between iterations)
    SOURCE_BACKWARD_DONE = "source_backward_done"  # gradients of the source loss are there
    TEACHER_FORWARD_DONE = "teacher_forward_done"  # the teacher has seen the target image
    LABELS_RECTIFIED = "labels_rectified"  # stage 1: soft labels times prototype weights, and their arg-max
    BACKWARD_DONE = "backward_done"  # all gradients of the iteration are there; clip or inspect them here
    OPTIMIZER_STEPPED = "optimizer_stepped"  # the student has moved
    DISCRIMINATOR_STEPPED = "discriminator_stepped"  # warm-up: the discriminator has moved
    PROTOTYPES_UPDATED = "prototypes_updated"  # stage 1: the prototypes have moved
    VALIDATED = "validated"  # new scores are in ``engine.state.metrics`` (between iterations)


def proda_engine(step) -> Engine:
    """An Engine that knows ``ProdaEvents``."""
    engine = Engine(step)
    engine.register_events(*ProdaEvents)
    return engine
