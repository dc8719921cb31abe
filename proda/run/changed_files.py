"""Which files of a run's data may have changed when it is resumed: those that stopped it, because they were damaged.

A run whose file cannot be read notes the example in ``config.json``. ``data_files.json`` lists all files that it began
with, so that a resumed run can show that nothing else has changed, whether the file was repaired or its example is
left out by ``--skip_bad``.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from proda.data.labelled_files import FileEntry
from proda.utils.run_files import DATA_FILES

Listings = Mapping[str, list[FileEntry]]  # name of a fingerprint, such as "source images" -> the files that it covers
PARTS = {"source": "source", "train": "target", "val": "validation"}  # as in skip lists -> as in names of fingerprints


class DataBefore(NamedTuple):
    """The data of a run that is resumed."""

    listings: Listings
    stopped_by: dict[str, list[str]]  # part of the data -> names of examples with a file that stopped the run
    labels_of: str  # fingerprint of the target images that stored labels and prototypes are of; empty: the present ones

    def order(self, part: str) -> list[str]:
        """The names of a part, in the order in which the run trains on them; empty if unknown."""
        return [name for name, *_ in self.listings.get(f"{PARTS.get(part)} images", [])]


def data_before(folder: Path, record: Mapping[str, Any]) -> DataBefore | None:
    """The data of the run in ``folder`` whose config.json is ``record``; None if its files are unknown."""
    run = record.get("run", {})
    try:
        content = json.loads((folder / DATA_FILES).read_text())
        listings = {name: [FileEntry(*entry) for entry in entries] for name, entries in content.items()}
        stopped_by = {part: list(names) for part, names in run.get("stopped_by", {}).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    labels_of = run.get("labels_of") or (run.get("data", {}).get("target images", "") if "train" in stopped_by else "")
    return DataBefore(listings, stopped_by, labels_of)


def unchanged_otherwise(before: DataBefore, name: str, now: list[FileEntry], left_out: Collection[str]) -> bool:
    """Whether the files ``now`` under the name of a fingerprint are those of the run, apart from those that stopped it.

    An example that stopped the run may have other files; it may only be missing if it is ``left_out``.
    """
    then, suspects = before.listings.get(name), set(before.stopped_by.get(part_of(name), ()))
    if then is None:
        return False
    gone = {entry.name for entry in then} - {entry.name for entry in now}
    others = [[entry for entry in entries if entry.name not in suspects] for entries in (then, now)]
    return gone <= set(left_out) and len(others[0]) == len(others[1]) and all(map(_same, *others))


def told_changes(
    before: DataBefore, now: Listings, left_out: Mapping[str, Collection[str]]
) -> dict[tuple[str, str], str]:
    """(Part, name) of each example that stopped the run and has other files now, or none -> a line for the log."""
    told = {}
    for name, entries in now.items():
        part, present = part_of(name), {entry.name: entry for entry in entries}
        for entry in before.listings.get(name, []):
            if entry.name not in before.stopped_by.get(part, ()) or entry == present.get(entry.name):
                continue
            what = f"the {PARTS[part]} image {entry.name}, which stopped the run,"
            if entry.name not in left_out[part]:
                line = f"{what} was repaired or replaced, and so the run goes on with it"
            elif part == "val":
                line = f"{what} is left out from now on: scores from now on are of one image less"
            else:
                line = f"{what} is left out from now on: the next image takes its place, and all others keep theirs"
            told[part, entry.name] = f"{line}; a run without the damage may have other results"
    return told


def part_of(name: str) -> str:
    """The part of the data that a fingerprint of this name is of."""
    return next((part for part, word in PARTS.items() if name.startswith(f"{word} ")), "")


def _same(one: FileEntry, other: FileEntry) -> bool:
    """Whether two entries agree, in the content only where both know it."""
    return one[:2] == other[:2] and (one.sha256 == other.sha256 or not (one.sha256 and other.sha256))
