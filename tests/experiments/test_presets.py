"""The published recipes, field by field: what each preset of each stage resolves to.

The literal values are those of the paper's and the released code's tables; no field that could change a result is left
out, so a new one needs its line here.
"""

from dataclasses import asdict

import pytest

from proda.cli.launch import load_experiment
from proda.data.loaders import TrainingBatches
from proda.run.domains import Domains
from proda.settings.reading import make_config

SOURCE_IMAGES, TARGET_IMAGES = 9400, 2975  # SYNTHIA, the smaller source; Cityscapes train
# Flags for where and how fast a run is computed, and for logging.
RUNNING = {
    *("output", "seed", "device", "num_workers", "amp", "deterministic", "nproc_per_node", "backend", "data_root"),
    *("val_batch_size", "checkpoint_every", "resume", "overwrite", "log_every", "label_report_every", "compile"),
    *("checkpoint_activations", "plan"),
}
COMMON = {
    "target": "cityscapes",
    "num_classes": 0,  # depends on the source: see the test below
    "backbone": "resnet101",
    "head": "deeplab",
    "optimizer": "sgd",
    "warmup_iterations": 0,
    "decay_power": 0.9,
    "batch_size": 4,
    "epochs": 84,
    "iterations": 0,  # determined by --epochs
    "weight_decay": 2e-4,
    "grad_clip": 0.0,
    # 0: as published, 2200 and 896 x 512, for Cityscapes (tests/run/test_data.py)
    "mean_width": 0,
    "crop_width": 0,
    "crop_height": 0,
    "dropout": 0.1,
    "accumulate": 1,
    "source_width": 0,  # as mean_width
    "width_jitter": 0.5,
    "rare_class_sampling": False,
    "feature_distance": 0.0,
    "thing_classes": "",
    "adabn": False,
    "skip_bad": "",
    "labelled_only": False,
    "val_every": 1000,
}
NO_PARTS = {"class_mix": False, "color_augmentation": False, "masked_consistency": 0.0}
DISTILLATION = {
    **NO_PARTS,
    "lr": 6e-4,
    "head_lr_factor": 10.0,
    "freeze_bn": False,
    "bn_pretrain": True,
    "pseudo_labels": "",
    "flip": True,
    "scales": "1",
    "label_with": "",
    "threshold": 0.95,
    "distillation_weight": 1.0,
}
STAGES = {
    "warmup": {
        "init": "imagenet",
        "init_file": "",
        "lr": 2.5e-4,
        "head_lr_factor": 10.0,
        "freeze_bn": True,
        "adversarial_weight": 0.01,
        "gan": "lsgan",
        "discriminator_lr": 1e-4,
    },
    "stage1_denoise": {
        **NO_PARTS,
        "lr": 1e-4,
        "head_lr_factor": 1.0,  # one group
        "freeze_bn": False,
        "pseudo_labels": "",
        "prototypes": "",
        "online_soft_labels": False,
        "renew_labels_every": 0,
        "validate_teacher": False,
        "teacher_momentum": 0.001,  # 0.999 of the teacher stays
        "teacher_mode": "train",
        "prototype_momentum": 1e-4,
        "rectification": True,
        "temperature": 1.0,
        "threshold": 0.0,
        "ce_weight": 0.1,
        "rce_weight": 1.0,
        "mrkld_weight": 0.1,
        "structure_weight": 10.0,
    },
    "stage2_distill": {**DISTILLATION, "init": "simclr", "init_file": ""},
    "stage3_distill": {**DISTILLATION, "init": "weights"},
}
# The flags that name the file which a stage takes from the one before.
BEFORE = {
    "warmup": ("", ()),
    "stage1_denoise": ("warmup", ("weights",)),
    "stage2_distill": ("stage1_denoise", ("teacher",)),
    "stage3_distill": ("stage2_distill", ("teacher", "init_file")),
}


def resolved(stage: str, **flags) -> dict:
    module = load_experiment(f"experiments/{stage}.py")
    return asdict(make_config(module.Config, flags, module.PRESETS))


def expected(stage: str, preset: str) -> dict:
    """Paper and released code differ in the length of the schedule, the file they keep, and ``as_released``."""
    released, (before, flags) = preset.endswith("released"), BEFORE[stage]
    values = {**COMMON, **STAGES[stage], "preset": preset, "source": preset.split("_")[0]}
    values |= {"as_released": released, "schedule_iterations": 90_000 if released else 0}
    values |= {flag: f"runs/{before}/{'best' if released else 'last'}.pt" for flag in flags}
    if preset == "synthia_released" and stage == "stage1_denoise":
        values["mrkld_weight"] = 0.0
    return values


@pytest.mark.parametrize("preset", ["gta5", "synthia", "gta5_released", "synthia_released"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_preset_of_a_stage_is_the_published_recipe(stage, preset):
    found = {name: value for name, value in resolved(stage, preset=preset).items() if name not in RUNNING}
    assert found == expected(stage, preset)


@pytest.mark.parametrize("stage", STAGES)
def test_the_source_determines_the_recipe_and_gta5_is_the_default(stage):
    assert resolved(stage, source="synthia") == resolved(stage, preset="synthia")
    assert resolved(stage) == {**resolved(stage, preset="gta5"), "preset": ""}


@pytest.mark.parametrize("stage", [*STAGES, "check_data", "evaluate", "predict"])
@pytest.mark.parametrize(("source", "classes"), [("gta5", 19), ("synthia", 16)])
def test_a_source_has_its_own_number_of_classes(stage, source, classes):
    module = load_experiment(f"experiments/{stage}.py")
    config = make_config(module.Config, {"preset": f"{source}_released"}, module.PRESETS)
    assert len(Domains(config).classes.names) == classes


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_on_cityscapes_has_the_published_length(stage):
    module = load_experiment(f"experiments/{stage}.py")
    for preset in ("gta5", "gta5_released"):
        config = make_config(module.Config, {"preset": preset}, module.PRESETS)
        length = {"batch_size": config.batch_size, "epochs": config.epochs, "iterations": config.iterations}
        batches = TrainingBatches(range(SOURCE_IMAGES), range(TARGET_IMAGES), **length)
        assert (batches.epoch_length, batches.iterations) == (743, 62_412)


def test_labels_and_prototypes_of_their_own_commands_equal_those_of_the_stages():
    for preset in ("gta5", "synthia", "gta5_released", "synthia_released"):
        prototypes, labels = resolved("prototypes", preset=preset), resolved("pseudo_labels", preset=preset)
        stage1, stage2 = (resolved(stage, preset=preset) for stage in ("stage1_denoise", "stage2_distill"))
        for alone in (prototypes, labels):
            assert alone["source"] == stage1["source"] and alone["weights"] == stage1["weights"]
        assert prototypes["passes"] == (4 if stage1["as_released"] else 1)
        assert all(labels[name] == stage2[name] for name in ("flip", "scales", "label_with"))


# Online self-training as DAFormer's code configures it; the backbone is ours.
SUCCESSORS = {
    "batch_size": 2,
    "source_width": 1280,
    "mean_width": 1024,
    "width_jitter": 0.0,
    "val_scale": 0.5,
    "crop_width": 512,
    "crop_height": 512,
    "init": "imagenet",
    "head_lr_factor": 10.0,
    "confidence": 0.968,
    "target_weight": 1.0,
    "teacher_momentum": 0.001,
    "teacher_mode": "train",
    "class_mix": True,
    "color_augmentation": True,
    "freeze_bn": False,
}
DAFORMER = {
    "backbone": "convnext_base",
    "head": "daformer",
    "iterations": 40_000,
    "optimizer": "adamw",
    "lr": 6e-5,
    "weight_decay": 0.01,
    "warmup_iterations": 1500,
    "decay_power": 1.0,
    "ignore_top": 15,
    "ignore_bottom": 120,
    "rare_class_sampling": True,
    "feature_distance": 0.005,
}
MIC = {"masked_consistency": 1.0}
DACS = {
    "backbone": "resnet101",
    "head": "deeplab",
    "iterations": 250_000,
    "optimizer": "sgd",
    "lr": 2.5e-4,
    "decay_power": 0.9,
    "ignore_top": 0,
    "ignore_bottom": 0,
    "rare_class_sampling": False,
    "feature_distance": 0.0,
}


@pytest.mark.parametrize("source", ["gta5", "synthia"])
@pytest.mark.parametrize(
    ("preset", "recipe"),
    [
        ("dacs", DACS | {"masked_consistency": 0.0}),
        ("daformer", DAFORMER | {"masked_consistency": 0.0}),
        ("mic", DAFORMER | MIC),
    ],
)
def test_the_presets_of_online_self_training_are_those_of_the_publications(preset, recipe, source):
    found = resolved("online_self_training", preset=preset, source=source)
    expected = SUCCESSORS | recipe | {"source": source}
    assert {name: found[name] for name in expected} == expected
