"""The files that a run leaves in its output folder: the one list of them."""

import re
from pathlib import Path

MODELS = ("best.pt", "last.pt", "label_free.pt")
RUN_FILES = (  # of a run, beside its checkpoints and models; glob patterns
    *("summary.json", "train.log", "prototypes.pt", "events.out.tfevents.*", "checkpoint_*.pt.damaged", ".*.part"),
)
_CHECKPOINT = re.compile(r"checkpoint_(0|[1-9][0-9]*)\.pt")  # no other name is a run's: checkpoint_2_keep.pt is not


def checkpoint_files(folder: str | Path) -> dict[int, Path]:
    """Iteration -> ``checkpoint_<iteration>.pt`` in ``folder``, oldest first."""
    found = {path: _CHECKPOINT.fullmatch(path.name) for path in Path(folder).glob("checkpoint_*.pt")}
    return dict(sorted((int(match[1]), path) for path, match in found.items() if match))


def earlier_run(folder: str | Path) -> list[Path]:
    """The files in ``folder`` that a training run goes on from or ends with; empty where none has been."""
    models = (Path(folder) / name for name in MODELS)
    return [*checkpoint_files(folder).values(), *(path for path in models if path.exists())]


def all_run_files(folder: str | Path) -> list[Path]:
    """Every file in ``folder`` that ``--overwrite`` deletes."""
    return [*earlier_run(folder), *(path for pattern in RUN_FILES for path in Path(folder).glob(pattern))]
