"""Results as text."""

from proda.studies.tables import control_sentence, markdown_table, stage_table


def test_columns_line_up_the_first_to_the_left_and_the_others_to_the_right():
    assert markdown_table(["name", "x"], [["a", "1.5"], ["longer", "22.5"]]).splitlines() == [
        "| name   |    x |",
        "| ------ | ---: |",
        "| a      |  1.5 |",
        "| longer | 22.5 |",
    ]


def stage(miou: float | None, best: float | None, seconds: float = 10.4, **more) -> dict:
    return {"miou": miou, "best_miou": best, "label_free": 1.5, "seconds": seconds, **more}


def cells(text: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_stages_show_percent_and_their_gain_over_the_one_before_and_the_oracle_over_source_only():
    stages = {"source_only": stage(0.4, 0.41), "warmup": stage(0.45, 0.46), "stage1_denoise": stage(0.44, 0.5)}
    found = cells(stage_table(stages | {"oracle": stage(0.6, 0.6)}))
    assert found["stage"] == ["mIoU", "gain", "best", "label-free score", "seconds"]
    assert found["source_only"] == ["40.0", "", "41.0", "1.50", "10"]
    assert found["warmup"] == ["45.0", "+5.0", "46.0", "1.50", "10"]
    assert found["stage1_denoise"] == ["44.0", "-1.0", "50.0", "1.50", "10"]
    assert found["oracle"] == ["60.0", "+20.0", "60.0", "1.50", "10"]


def test_scores_that_nobody_can_know_have_no_column_and_the_first_stage_no_gain():
    assert cells(stage_table({"warmup": stage(None, None)})) == {
        "stage": ["label-free score", "seconds"],
        "------": ["---------------:", "------:"],
        "warmup": ["1.50", "10"],
    }
    found = cells(stage_table({"warmup": stage(0.4, 0.4, miou_13=0.5), "stage1_denoise": stage(0.5, 0.5, miou_13=0.6)}))
    assert found["warmup"][:3] == ["40.0", "", "50.0"] and found["stage1_denoise"][:3] == ["50.0", "+10.0", "60.0"]


def test_nothing_builds_on_the_control():
    scores = {"warmup": 0.45, "control": 0.46, "stage1_denoise": 0.5}
    stages = {name: stage(score, score) for name, score in scores.items()}
    found = cells(stage_table(stages))
    assert found["control"][1] == "+1.0" and found["stage1_denoise"][1] == "+5.0"  # both over the warm-up
    assert control_sentence(stages).startswith("Stage 1 ends 4.0 points above its control")
    stages["stage1_denoise"]["miou"] = 0.448
    assert control_sentence(stages).startswith("Stage 1 ends 1.2 points below its control")
    stages["stage1_denoise"]["miou"] = 0.46001
    assert control_sentence(stages).startswith("Stage 1 ends at the score of its control")
    assert control_sentence({"control": stage(0.46, 0.46)}) == control_sentence(stages | {"control": stage(None, None)})
    assert control_sentence({}) == ""
