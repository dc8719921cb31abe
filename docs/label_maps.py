"""Draws docs/images/photographs.png: the label maps that the stages predict for a few photographs of CamVid.

    python docs/label_maps.py runs/photographs/seed_2

The folder holds the rows of ``experiments/ablation.py --preset=camvid``. The photographs and their ground truth may not
be part of this repository, so their two columns are left out.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from experiments import pipeline  # noqa: E402
from proda.report.panel import draw_panel  # noqa: E402
from proda.settings.reading import make_config  # noqa: E402
from proda.visualization import GAP  # noqa: E402

ROWS = ("source_only", "warmup", "structure", "distillation", "second_distillation", "oracle")
PHOTOGRAPHS = 4

if __name__ == "__main__":
    config = make_config(pipeline.Config, {"preset": "camvid", "output": sys.argv[1]}, pipeline.PRESETS)
    panel = draw_panel(config, ROWS, PHOTOGRAPHS)
    if panel is None:
        sys.exit(f"error: {config.data_root}/camvid: found no label maps of the split test")
    column = (panel.width + GAP) // (2 + len(ROWS))
    predictions = panel.crop((2 * column, 0, panel.width, panel.height))
    predictions.quantize(64).save(ROOT / "docs/images/photographs.png", optimize=True)
