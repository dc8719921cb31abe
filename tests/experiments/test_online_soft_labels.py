"""Stage 1 without a store of soft labels."""

import pytest

from proda.utils.errors import UserError
from tests import small_runs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("online")
    return small_runs.write_data(folder / "data"), small_runs.write_weights(folder / "warm.pt")


def test_stage_1_trains_online_as_it_does_on_stored_labels_and_stores_none(inputs, tmp_path):
    short = {"iterations": 2, "checkpoint_every": 10, "val_every": 10}
    stored = small_runs.train("stage1_denoise", *inputs, tmp_path / "stored", **short)
    online = small_runs.train("stage1_denoise", *inputs, tmp_path / "online", **short, online_soft_labels=True)
    assert (tmp_path / "stored" / "pseudo_labels").exists() and not (tmp_path / "online" / "pseudo_labels").exists()
    assert online["label_free"] == pytest.approx(stored["label_free"], abs=0.02)  # stored ones are rounded


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"online_soft_labels": True, "renew_labels_every": 1}, "--renew_labels_every renews stored labels"),
        ({"online_soft_labels": True, "flip": True}, "--flip is for stored labels"),
        ({"renew_prototypes": True}, "--renew_prototypes needs --renew_labels_every"),
    ],
)
def test_flags_for_stored_or_renewed_labels_are_refused_where_there_are_none(inputs, tmp_path, flags, line):
    with pytest.raises(UserError, match=line):
        small_runs.train("stage1_denoise", *inputs, tmp_path, **flags)
