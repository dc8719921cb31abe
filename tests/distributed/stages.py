"""An experiment for the tests: stages in turn in one group of processes, with a record of what each process did.

    python run.py tests/distributed/stages.py --nproc_per_node=2 --data_root=... --weights=... --output=...

Batch norm is frozen or evaluated, as without synchronised statistics the answer depends on how a batch is split; it
learns in the runs that are resumed, which are compared with their like.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ignite.distributed as idist
import pytest
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from proda.cli.launch import load_experiment, start
from proda.data.label_store import HardLabelStore, SoftLabelStore
from proda.engines.inference import segmentation_evaluator
from proda.engines.optimization import Precision
from proda.handlers import prototypes
from proda.run.config import RunConfig
from proda.run.data import whole_images
from proda.run.domains import Domains
from proda.run.networks import Networks, parallel
from proda.settings.reading import make_config
from tests.small_runs import PARTS, STAGES, flags, stopped_after

THRESHOLD = 0.5  # of stage 1's rectified labels, so that some are ignored, and not equally many in every process
EVERY = (*STAGES, "stage1_denoise+parts", "stage2_distill+parts")
RESUMED = {"stage1_denoise": {"validate_teacher": True, "adabn": False}}  # stage -> flags
CAP = 5  # of the counts of initial prototypes: reached before the last of eight images, so that order matters


@dataclass
class Config(RunConfig):
    data_root: str = ""  # as tests.small_runs writes it
    weights: str = ""  # as tests.small_runs writes them
    double: bool = True  # compute in float64, where no rounding decides between two labels or two pixels
    stages: str = ",".join(EVERY)  # which, separated by commas; +parts: with the parts of small_runs
    resumed: bool = False  # then those of RESUMED, left alone and stopped


def run(local_rank: int, config: Config) -> dict:
    written: list[str] = []
    exchanges: Counter = Counter()

    def counted(*args, **settings):
        network = parallel(*args, **settings)
        if isinstance(network, DistributedDataParallel):
            kind = type(network.module).__name__

            def hook(state, bucket):
                exchanges[kind] += bucket.is_last()
                return allreduce_hook(state, bucket)

            network.register_comm_hook(None, hook)
        return network

    record = {}
    with pytest.MonkeyPatch.context() as patch:
        if config.double:
            torch.set_default_dtype(torch.float64)
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)  # what the method raises half precision by
        for stage in STAGES:
            module = load_experiment(f"experiments/{stage}.py")
            if hasattr(module, "parallel"):  # stage 3 has stage 2's
                patch.setattr(module, "parallel", counted)
        patch.setattr(prototypes, "COUNT_CAP", CAP)
        for store in (SoftLabelStore, HardLabelStore):
            patch.setattr(store, "write", _recorded(store.write, written))
        _all_stages(config, record, written, exchanges)
        record["confusion"] = _confusion(config)
    if config.resumed:
        torch.set_default_dtype(torch.float32)
        record["judged"] = {stage: _resumed(config, stage, more) for stage, more in RESUMED.items()}
    (Path(config.output) / f"record_{idist.get_rank()}_of_{idist.get_world_size()}.json").write_text(json.dumps(record))
    return {}


def _all_stages(config: Config, record: dict, written: list[str], exchanges: Counter) -> None:
    for name in config.stages.strip("()").replace("'", "").replace(" ", "").split(","):
        stage, _, parts = name.partition("+")
        more = {"dropout": 0.1, "freeze_bn": True, "seed": config.seed, **(PARTS if parts else {})}
        more["amp"] = config.amp
        more["lr"] = 0.005  # small: rounding grows with every step
        if stage == "stage1_denoise":
            # the published loss weights: hard labels of so young a network hang on rounding, and cross entropy on them
            more |= {"ce_weight": 0.1, "rce_weight": 1.0}
            more |= {"validate_teacher": True, "teacher_mode": "eval"}
            more |= {"teacher_momentum": 0.1, "prototype_momentum": 0.01, "threshold": THRESHOLD}
        if stage == "online_self_training":
            more |= {"teacher_momentum": 0.1, "confidence": 0.5, "teacher_mode": "eval"}
        _start(config, stage, name, **more)
        record[name] = {"written": list(written), "exchanges": dict(exchanges)}
        written.clear()
        exchanges.clear()


def _resumed(config: Config, stage: str, more: dict) -> dict[str, dict]:
    """Runs a stage without interruption and with one, which one process asks for; what its models score afterwards."""
    whole, cut = f"{stage} whole", f"{stage} cut"
    more = {**more, "checkpoint_every": 1}
    _start(config, stage, whole, **more)
    with stopped_after(3, rank=idist.get_world_size() - 1):
        _start(config, stage, cut, **more)
    _start(config, stage, cut, **more, resume=True)
    found = {}
    for name in ("last.pt", "teacher.pt"):
        settings, output = _judging(config, Path(config.output) / whole / name), f"{config.output}/{stage} {name}"
        found[name] = start("experiments/evaluate.py", settings | {"output": output})["iou"]
    return found


def _start(config: Config, stage: str, name: str, **more) -> None:
    output = Path(config.output) / name
    start(f"experiments/{stage}.py", flags(stage, Path(config.data_root), Path(config.weights), output, **more))


def _judging(config: Config, weights: Path | str) -> dict:
    settings = {"data_root": config.data_root, "num_classes": 13, "backbone": "tiny", "val_batch_size": 2}
    return settings | {"num_workers": 0, "device": "cpu", "weights": str(weights)}


def _confusion(config: Config) -> list[list[float]]:
    """Of the untrained weights on the validation images."""
    settings = make_config(load_experiment("experiments/evaluate.py").Config, _judging(config, config.weights))
    data, precision = Domains(settings), Precision("cpu")
    network = Networks(settings, data.classes, precision).load()
    evaluator = segmentation_evaluator(network, precision)
    evaluator.run(whole_images(settings, data.validation))
    return evaluator.state.metrics["confusion"].tolist()


def _recorded(write: Callable, written: list[str]) -> Callable:
    def recorded(self, name, *args):
        written.append(name)
        return write(self, name, *args)

    return recorded
