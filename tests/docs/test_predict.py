"""The Python code of docs/predict.md runs, and its table lists what a weights file holds."""

import re
from dataclasses import fields

import numpy as np
from PIL import Image

from proda.models.model_info import ModelInfo
from tests import small_runs

PAGE = (small_runs.ROOT / "docs/predict.md").read_text()


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_runs.write_weights(tmp_path / "last.pt")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save("photo.jpg")
    scope: dict = {}
    page = PAGE.split("## Export")[0]  # tests/experiments/test_export.py runs the code of that section
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(block, scope)
    assert scope["labels"].shape == scope["road"].shape == scope["ids"].shape == (40, 60)
    assert scope["picture"].shape == (40, 60, 3) and scope["picture"].dtype == np.uint8


def test_the_table_lists_every_entry():
    table = PAGE.split("## What is in a weights file")[1]
    listed = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert listed == {field.name for field in fields(ModelInfo)} | {"format", "model", "prototypes", "discriminator"}
