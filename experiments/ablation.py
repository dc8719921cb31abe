"""Ablation: what each part of the method contributes, paired by seed. Takes hours on a CPU.

    python run.py experiments/ablation.py --dry                  # lists the runs and says which of them are done
    python run.py experiments/ablation.py                        # 5 seeds
    python run.py experiments/ablation.py --source_length=2      # the same after longer training on the source
    python run.py experiments/ablation.py --seed=3 --seeds=2     # seeds 3 and 4; others may run at the same time
    python run.py experiments/ablation.py --table=successors --scale=0.5

    python run.py experiments/ablation.py --preset=camvid          # the table of the photographs

Tables: ``parts`` adds the components of the method one after another, as in the paper; ``successors`` adds components
of later methods to online self-training and to stage 1; ``quickstart`` has its stages; ``photographs`` and
``photographs_online``, which go with --preset=camvid, have the rows of ``parts`` and online self-training. The rows are
in proda/studies/rows.py. Tables share the runs that are in both.

The results of all seeds in OUTPUT that are complete are written after every run: OUTPUT/ablation.md and
OUTPUT/ablation.json, or the table's own name instead of ablation. The same command again continues where an earlier one
stopped.
"""

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import ignite.distributed as idist

from proda.cli.launch import load_experiment
from proda.run.config import DataConfig
from proda.run.record import read_provenance
from proda.settings.options import Bounds, LengthFactor
from proda.settings.presets import CAMVID_DATA, STREETS_DATA, scaled
from proda.settings.reading import make_config
from proda.studies.results import Results
from proda.studies.rows import FILES, ROWS_OF, TABLES, Row
from proda.studies.statistics import students_t
from proda.studies.tables import caption, findings_table, rows_table
from proda.studies.up_to_date import finished_summary, run_if_outdated
from proda.utils.errors import UserError
from proda.utils.files import atomic_write

NOT_PASSED_ON = ("preset", "seed", "output", "nproc_per_node", "backend")  # set for each run, or not used
PASSED_ON = [field.name for field in fields(DataConfig) if field.name not in NOT_PASSED_ON]

Table = Literal["parts", "successors", "quickstart", "photographs", "photographs_online"]


@dataclass
class Config(DataConfig):
    # -- Recipe
    preset: Literal["streets", "camvid"] = "streets"  # data, network and schedules: streets, or camvid
    table: Table = "parts"  # rows to run and to compare
    seeds: Annotated[int, Bounds(1, 1000)] = 5  # number of runs of every row, with the seeds --seed, --seed + 1, ...
    # -- Length
    scale: LengthFactor = 1.0  # factor for the number of iterations of every run
    source_length: LengthFactor = 1.0  # further factor for those of source-only and of the oracle
    # -- Output
    dry: bool = False  # list the runs as commands, without running any
    overwrite: bool = False  # replace runs in the output folder that used other settings


PRESETS = {"streets": STREETS_DATA, "camvid": {**CAMVID_DATA, "table": "photographs"}}


def run(local_rank: int, config: Config) -> dict:
    if idist.get_world_size() > 1:
        raise UserError("the ablation runs in one process only; single stages accept --nproc_per_node")
    runs = [(seed, row) for seed in range(config.seed, config.seed + config.seeds) for row in needed_rows(config)]
    if config.dry:
        return dry_run(config, runs)
    students_t()  # says now, and not after the first runs, that scipy is missing
    for number, (seed, row) in enumerate(runs, 1):
        print(f"\n[{number}/{len(runs)}] seed {seed}, {row}", flush=True)
        run_if_outdated(experiment_file(config, row), flags(config, row, seed), overwrite=config.overwrite)
        report = write_report(config)
    print(f"\n{report['page']}")
    return report


def needed_rows(config: Config) -> list[str]:
    """The rows of a table and those that they build on, each after those that it builds on."""
    found: dict[str, None] = {}

    def add(row: str) -> None:
        for model in recipe_of(config, row).start.values():
            add(model.split("/")[0])
        found[row] = None

    for row in TABLES[config.table].rows:
        add(row)
    return list(found)


def recipe_of(config: Config, row: str) -> Row:
    return ROWS_OF[config.preset][row]


def experiment_file(config: Config, row: str) -> str:
    return f"experiments/{recipe_of(config, row).experiment}.py"


def flags(config: Config, row: str, seed: int) -> dict[str, Any]:
    """The flags of the run of a row."""
    folder, recipe = Path(config.output) / f"seed_{seed}", recipe_of(config, row)
    module = load_experiment(experiment_file(config, row))
    values = {"preset": config.preset, "seed": seed, "output": str(folder / row)}
    values |= {name: getattr(config, name) for name in PASSED_ON}
    values |= {flag: str(folder / model) for flag, model in recipe.start.items()} | recipe.flags
    preset = {**module.PRESETS[config.preset], **recipe.flags}
    values |= scaled(preset, config.scale)
    if recipe.experiment == "source_only":
        values["iterations"] = max(1, round(config.source_length * values["iterations"]))
    return values


def dry_run(config: Config, runs: list[tuple[int, str]]) -> dict:
    """Prints the command of every run, after ``done`` where the output folder has its result."""
    done = 0
    for seed, row in runs:
        values, module = flags(config, row, seed), load_experiment(experiment_file(config, row))
        preset = make_config(module.Config, {"preset": config.preset}, module.PRESETS)
        finished = finished_summary(experiment_file(config, row), values) is not None
        done += finished
        shown = {name: value for name, value in values.items() if name == "preset" or value != getattr(preset, name)}
        words = " ".join(f"--{name}={shlex.quote(str(value))}" for name, value in shown.items())
        print(f"{'done  ' if finished else 'to run'}  python run.py {experiment_file(config, row)} {words}")
    print(f"{done} of {len(runs)} runs are done")
    return {"runs": len(runs), "done": done}


def write_report(config: Config) -> dict[str, Any]:
    """Writes results and page of the seeds in the output folder; returns the results and, as ``page``, the page."""
    name, written = FILES.get(config.table, config.table), None
    while written != (report := collect(config)):  # again if another command has finished a run in the meantime
        results, page = report
        if results is not None:
            results.save(Path(config.output) / f"{name}.json")
        with atomic_write(Path(config.output) / f"{name}.md") as path:
            path.write_text(page, encoding="utf-8", errors="backslashreplace")
        written = report
    return {"results": results, "page": page}


def collect(config: Config) -> tuple[Results | None, str]:
    """The results of all seeds in the output folder whose rows are complete, and a page that shows them.

    Other seeds are on the page alone. Only runs that have the settings of this command count.
    """
    table, complete, lines = TABLES[config.table], {}, []
    folders = [path for path in Path(config.output).glob("seed_*") if path.name[5:].isdecimal()]
    for seed in sorted(int(path.name[5:]) for path in folders):
        found = {row: finished_summary(experiment_file(config, row), flags(config, row, seed)) for row in table.rows}
        there = {row: summary for row, summary in found.items() if summary is not None}
        if len(there) == len(table.rows):
            complete[seed] = there
        else:
            scores = ", ".join(f"{row} {100 * summary['miou']:.1f}" for row, summary in there.items())
            lines.append(f"* seed {seed}, {len(there)} of {len(table.rows)} rows{scores and f': {scores}'}")
    text = "Not complete yet, with these settings:\n\n" + "\n".join(lines) + "\n" if lines else ""
    if not complete:
        return None, text
    runs = [read_provenance(Path(config.output) / f"seed_{seed}" / row) for seed in complete for row in table.rows]
    runs.sort(key=lambda run: run.get("started", ""))
    results = Results(
        table=config.table,
        command=command(config, list(complete)),
        commit=", ".join(dict.fromkeys(run.get("git_commit", "unknown") for run in runs)),
        date=runs[-1].get("started", "unknown")[:10],
        seeds=list(complete),
        rows={row: [summaries[row]["miou"] for summaries in complete.values()] for row in table.rows},
        seconds={row: [summaries[row]["seconds"] for summaries in complete.values()] for row in table.rows},
        iou={
            row: {
                name: [summaries[row]["iou"][name] for summaries in complete.values()]
                for name in next(iter(complete.values()))[row]["iou"]
            }
            for row in table.rows
        },
    )
    tables = f"{rows_table(results, table)}\n\n{findings_table(results, table)}\n"
    head = f"{caption(results)}\n\nThe mIoU is that of the last model on the target's validation images, in %."
    return results, f"{head}\n\n{tables}" + (f"\n{text}" if text else "")


def command(config: Config, seeds: list[int]) -> str:
    """The command line that makes the runs of these seeds, without flags that change no result."""
    values: dict[str, Any] = {
        "preset": config.preset,
        "table": config.table,
        "source": config.source,
        "num_classes": config.num_classes,
    }
    values |= {"backbone": config.backbone, "head": config.head, "amp": config.amp, "scale": config.scale}
    values |= {"source_length": config.source_length, "seed": seeds[0]}
    defaults = {name: getattr(Config(), name) for name in values} | PRESETS[config.preset]
    text = "".join(f" --{name}={value}" for name, value in values.items() if value != defaults[name])
    return f"python run.py experiments/ablation.py{text} --seeds={seeds[-1] - seeds[0] + 1}"
