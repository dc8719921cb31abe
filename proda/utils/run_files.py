"""Lists the files that a run writes to its output folder."""

import re
from pathlib import Path

DATA_FILES = "data_files.json"  # name, size and, of some, content of every file that a run reads
MODELS = ("best.pt", "last.pt", "label_free.pt", "teacher.pt")
RUN_FILES = (  # files of a run other than checkpoints and models; glob patterns
    *("summary.json", "report.html", "train.log", "prototypes.pt", "events.out.tfevents.*", DATA_FILES),
    *("checkpoint_*.pt.damaged", ".*.part"),
)
_CHECKPOINT = re.compile(r"checkpoint_(0|[1-9][0-9]*)\.pt")  # does not match copies such as checkpoint_2_keep.pt


def checkpoint_files(folder: str | Path) -> dict[int, Path]:
    """Iteration -> ``checkpoint_<iteration>.pt`` in ``folder``, oldest first."""
    found = {path: _CHECKPOINT.fullmatch(path.name) for path in Path(folder).glob("checkpoint_*.pt")}
    return dict(sorted((int(match[1]), path) for path, match in found.items() if match))


def earlier_run(folder: str | Path) -> list[Path]:
    """Checkpoints and models of a training run in ``folder``; empty if it holds no run."""
    models = (Path(folder) / name for name in MODELS)
    return [*checkpoint_files(folder).values(), *(path for path in models if path.exists())]


def all_run_files(folder: str | Path) -> list[Path]:
    """Every file in ``folder`` that ``--overwrite`` deletes."""
    found = [path for pattern in RUN_FILES for path in Path(folder).glob(pattern)]
    return [*found, *earlier_run(folder)]
