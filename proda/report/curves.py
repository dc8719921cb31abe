"""The curves of a run, read from its TensorBoard files."""

import math
import struct
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError
from tensorboardX.proto.event_pb2 import Event, SessionLog

from proda.utils.errors import UserError


class Point(NamedTuple):
    """One logged value; ``time`` is in seconds since 1970."""

    step: int
    value: float
    time: float


Curve = list[Point]  # at least one point, in the order of the steps


def read_curves(folder: Path) -> dict[str, Curve]:
    """Tag -> points of every scalar in the TensorBoard files of a run; empty if there are none.

    A resumed run has several files. As in TensorBoard, a later session hides what an earlier one wrote from the
    session's first step on; at the same step, the later value wins. Values that are not finite are left out.

    Raises:
        UserError: a file is not a TensorBoard file.
    """
    found: dict[str, dict[int, Point]] = {}
    sessions = [list(_events(path)) for path in Path(folder).glob("events.out.tfevents.*")]
    for events in sorted(filter(None, sessions), key=lambda events: events[0].wall_time):
        for event in events:
            if event.session_log.status == SessionLog.START:
                for points in found.values():
                    for step in [step for step in points if step >= event.step]:
                        del points[step]
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value" and math.isfinite(value.simple_value):
                    points = found.setdefault(value.tag, {})
                    points[event.step] = Point(event.step, value.simple_value, event.wall_time)
    return {tag: [points[step] for step in sorted(points)] for tag, points in found.items() if points}


def chosen(curves: Mapping[str, Curve], tags: Mapping[str, str]) -> dict[str, Curve]:
    """Name -> curve, for those of ``tags`` (name -> tag) that there are."""
    return {name: curves[tag] for name, tag in tags.items() if tag in curves}


def rates(curve: Curve) -> Curve:
    """Steps per second between neighbouring points, at the later of the two."""
    pairs = pairwise(curve)
    return [
        Point(after.step, (after.step - before.step) / (after.time - before.time), after.time)
        for before, after in pairs
        if after.time > before.time
    ]


def thinned(curve: Curve, most: int) -> Curve:
    """At most ``most`` points, each the mean of as many neighbours; the last may be the mean of fewer."""
    size = -(-len(curve) // most)
    groups = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [Point(group[-1].step, sum(p.value for p in group) / len(group), group[-1].time) for group in groups]


def _events(path: Path) -> Iterator[Event]:
    """The records of a file: length in 8 bytes, checksum in 4, data, checksum in 4.

    A record that a killed run has not finished ends the file.
    """
    content = memoryview(path.read_bytes())
    place = 0
    while place + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        data = content[place + 12 : place + 12 + length]
        place += 12 + length + 4
        if place > len(content):
            return
        try:
            yield Event.FromString(bytes(data))
        except DecodeError as error:
            raise UserError(f"{path}: damaged ({error}); expected a TensorBoard file; move it elsewhere") from error
