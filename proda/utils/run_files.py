"""Lists the files that a run writes to its output folder."""

import fnmatch
import json
import re
from collections.abc import Collection
from pathlib import Path

DATA_FILES = "data_files.json"  # name, size and, of some, content of every file that a run reads
MODELS = ("best.pt", "last.pt", "label_free.pt", "teacher.pt")
RUN_FILES = (  # files of a run other than checkpoints and models; glob patterns
    *("summary.json", "report.html", "train.log", "prototypes.pt", "events.out.tfevents.*", DATA_FILES),
    *("checkpoint_*.pt.damaged", ".*.part"),
)
RESULTS = (  # folders of pictures and videos, and single pictures, that commands write beside one of _MARKERS
    *("labels", "overlays", "confidence", "videos", "pseudo_labels"),
    *("legend.png", "confusion.png", "classes.png", "examples_*.jpg", "panel.png"),
)
_MARKERS = {"config.json": "run", "manifest.json": "kind"}  # of a run and of pseudo labels -> a key in it
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


def results_among(names: Collection[str], folder: str | Path) -> set[str]:
    """Those of the ``names`` in ``folder`` that hold results of a command; empty if no command has written there."""
    if not any(_is_ours(Path(folder) / file, key) for file, key in _MARKERS.items() if file in names):
        return set()
    return {name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in RESULTS)}


def _is_ours(path: Path, key: str) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and key in content
