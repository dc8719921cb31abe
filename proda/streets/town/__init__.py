"""A town: streets with more detail than the other Streets, seen by a camera on a dashboard.

What is drawn comes from general knowledge of streets, British ones among them: brick terraces, shops, railings, bare
trees, parked cars along the kerbs. Colors, sizes and numbers are wide ranges that were written down without measuring
any photograph.

What was seen of CamVid, all of it before the drawings were final: a sheet of 12 photographs of its training split, for
the layout; the published shares of its classes, after which roads became narrower and trees and cars fewer; and five
times the scores of a small classifier of pretrained features on half of its validation split. They showed that the
drawings taught more than Streets with random colors, that fronts were taken for trees because they were too plain, and
that pavements were taken for roads. Fronts then got more ornaments and texture, and more pavements got the tone of a
road. Nothing of the test split was used.
"""

from proda.streets.town.layout import draw_town

__all__ = ["draw_town"]
