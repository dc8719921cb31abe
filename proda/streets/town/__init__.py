"""A town: streets with more detail than the other Streets, seen by a camera on a dashboard.

What is drawn comes from general knowledge of streets, British ones among them: brick terraces, shops, railings, bare
trees, parked cars along the kerbs. Colors, sizes and numbers are wide ranges that were written down without measuring
any photograph. Photographs of CamVid's training split were looked at only to find gross errors of the
layout; a network trained on these drawings was once tried on its validation split, which showed that fronts were too
plain (they were taken for trees) and pavements too unlike the road.
"""

from proda.streets.town.layout import draw_town

__all__ = ["draw_town"]
