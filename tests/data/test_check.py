import numpy as np
import pytest
from PIL import Image

from proda.data.check import DatasetReport, choose_examples, inspect_files, spot_check
from proda.data.labelled_files import LabelledFiles
from proda.data.labels import UNKNOWN
from proda.method import IGNORE


def folder(path, count: int = 4, size=(4, 2), ids=(0, 0, 1, 9)) -> LabelledFiles:
    """Images labelled half class 0, a quarter class 1, a quarter nothing."""
    table = np.full(256, UNKNOWN, np.uint8)
    table[[0, 1, 9]] = 0, 1, IGNORE
    for i in range(count):
        Image.new("RGB", size, (i, 9, 200)).save(path / f"{i}.png")
        Image.fromarray(np.tile(np.array(ids, np.uint8), (size[1], 1))).save(path / f"{i}_ids.png")
    names = [str(i) for i in range(count)]
    images, labels = ([path / f"{name}{end}.png" for name in names] for end in ("", "_ids"))
    return LabelledFiles(images, labels, names, table=table, num_classes=3)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_report_adds_up_images_sizes_and_classes(tmp_path, num_workers):
    result = DatasetReport(3)
    inspect_files(folder(tmp_path), result, num_workers=num_workers)
    assert (result.images, result.labelled, result.sizes) == (4, 4, {(4, 2): 4})
    assert result.frequencies == pytest.approx([2 / 3, 1 / 3, 0]) and result.ignored == pytest.approx(1 / 4)
    assert result.images_with[:3].tolist() == [4, 4, 0] and result.problems == []


def test_a_report_names_every_bad_file_and_counts_the_others(tmp_path):
    dataset, result = folder(tmp_path), DatasetReport(3)
    dataset.size, dataset.left_out = (2, 2), ["hidden files (1, such as .x.png)"]
    dataset.images[1].write_bytes(dataset.images[1].read_bytes()[:50])
    Image.new("L", (4, 2), 77).save(dataset.label_files[2])
    dataset.label_files[3].unlink()
    inspect_files(dataset, result)
    assert result.images == 4 and result.labelled == 1 and result.sizes == {(4, 2): 1}  # as on disk
    assert [problem.partition(":")[0] for problem in result.problems] == [
        str(file) for file in (dataset.images[1], *dataset.label_files[2:])
    ]
    assert result.bad_names == ["1", "2", "3"]
    assert "  left out: hidden files (1, such as .x.png)" in list(result.lines(["a", "b", "c"], details=tmp_path))


def test_without_labels_nothing_is_said_about_classes(tmp_path):
    dataset, result = folder(tmp_path), DatasetReport(3)
    dataset.label_files = None
    inspect_files(dataset, result)
    assert result.labelled == 0 and result.ignored == 0 and not result.frequencies.any()


def test_a_spot_check_looks_at_the_first_the_last_and_some_between(tmp_path):
    dataset = folder(tmp_path, count=9)
    read = []
    dataset.__class__ = type("Spied", (LabelledFiles,), {"__getitem__": lambda s, i: read.append(i) or seen(s, i)})
    seen = LabelledFiles.__getitem__
    assert spot_check(dataset, 3) == [(2, 4)] and read == [0, 4, 8]
    dataset.images[8].write_text("nothing")
    with pytest.raises(ValueError, match=r"8\.png: not a complete image"):
        spot_check(dataset)


def test_examples_show_every_class_and_come_from_all_over_the_set():
    common = {f"{i:03}": np.array([900, 0, 0]) for i in range(100)}
    rare = {"017": np.array([100, 5, 0]), "050": np.array([100, 50, 0]), "071": np.array([100, 0, 1])}
    chosen = choose_examples(common | rare, 6)
    assert len(chosen) == 6 and chosen == sorted(chosen)
    assert {"050", "071"} <= set(chosen) and "017" not in chosen  # 050 has ten times as much of that class
    assert min(chosen) < "005" and max(chosen) > "095"


def test_there_are_no_more_examples_than_images_and_than_asked_for():
    assert choose_examples({}) == []
    assert choose_examples({"a": np.array([1, 0]), "b": np.array([0, 1])}) == ["a", "b"]
    many = {str(k): np.eye(30, dtype=int)[k] for k in range(30)}
    assert len(choose_examples(many)) == 12
    assert choose_examples({"a": np.array([9, 0, 0]), "all": np.array([5, 5, 5])}, 1) == ["all"]
