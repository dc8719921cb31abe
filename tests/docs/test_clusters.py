"""The scripts of docs/clusters.md."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from proda.cli.launch import load_experiment
from tests import small_runs

PAGE = (small_runs.ROOT / "docs/clusters.md").read_text()
SCRIPTS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(line.rstrip(" &")) for script in SCRIPTS for line in script.replace("\\\n", "").splitlines() if line
]
EXPERIMENTS = [words for words in COMMANDS if any(word.startswith("experiments/") for word in words)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_have_no_syntax_error(script):
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""


@pytest.mark.parametrize("words", EXPERIMENTS)
def test_every_flag_exists(words):
    (start,) = [i for i, word in enumerate(words) if word.startswith("experiments/")]
    config = load_experiment(words[start]).Config
    assert {flag.lstrip("-").split("=")[0] for flag in words[start + 1 :]} <= {field.name for field in fields(config)}
    if "torchrun" in words:
        known = {option for action in get_args_parser()._actions for option in action.option_strings}
        flags = [word.split("=")[0] for word in words[words.index("torchrun") : start] if word.startswith("--")]
        assert flags and set(flags) <= known


@pytest.mark.slow
def test_the_torchrun_command_trains_with_two_processes(tmp_path):
    (words,) = [words for words in EXPERIMENTS if words[:2] == ["torchrun", "--standalone"]]
    start = words.index("run.py")
    options = [word.replace("--nproc_per_node=4", "--nproc_per_node=2") for word in words[1:start]]
    data, weights = small_runs.write_data(tmp_path / "data"), small_runs.write_weights(tmp_path / "weights.pt")
    small = small_runs.flags("stage1_denoise", data, weights, tmp_path / "run", iterations=2)
    given = {word.lstrip("-").split("=")[0] for word in words[start + 2 :]}
    assert given <= small.keys()  # so that small replaces all of them
    arguments = [*options, *words[start : start + 2], *(f"--{name}={value}" for name, value in small.items())]
    process = small_runs.launch([sys.executable, "-m", "torch.distributed.run", *arguments])
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors
    summary, config = (json.loads((tmp_path / "run" / f"{name}.json").read_text()) for name in ("summary", "config"))
    assert summary["iterations"] == 2 and config["run"]["processes"] == 2


def simulate_slurm(folder: Path, *, training: str) -> dict[str, str]:
    """An environment in which srun runs ``training``, scancel signals it, and the file ``calls`` lists all calls."""
    commands = {
        "srun": f'echo $$ > "{folder}/pid"; {training}',
        "scancel": f'kill -TERM "$(cat "{folder}/pid")"',
        "scontrol": "",
    }
    for name, body in commands.items():
        file = folder / name
        file.write_text(f'#!/bin/bash\necho {name} "$@" >> "{folder}/calls"\n{body}\n')
        file.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "42", "SLURM_CPUS_PER_TASK": "6"}


# As a run does: SIGTERM is answered a moment later, with status 143.
STOPS = "trap 'sleep 0.3; exit 143' TERM; while :; do sleep 0.05; done"


@pytest.mark.parametrize(
    ("training", "warned", "status", "requeued"),
    [(STOPS, True, 143, True), ("exit 0", False, 0, False), ("exit 2", False, 2, False)],
    ids=["time limit", "finished", "failed"],
)
def test_the_slurm_script_requeues_what_the_time_limit_stopped_and_nothing_else(
    tmp_path, training, warned, status, requeued
):
    (script,) = [script for script in SCRIPTS if script.startswith("#!/bin/bash")]
    environment = simulate_slurm(tmp_path, training=training)
    job = subprocess.Popen(["bash", "-c", script], env=environment, cwd=tmp_path)
    if warned:
        deadline = time.monotonic() + 20
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.2)  # until the trap of the step is set
        job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == status
    calls = (tmp_path / "calls").read_text().splitlines()
    assert ("scontrol requeue 42" in calls) == requeued
    assert ("scancel --signal=TERM 42" in calls) == warned
