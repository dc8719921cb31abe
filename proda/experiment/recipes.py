"""Values that presets of several experiments share."""

# Presets of commands that train no network: only the source's data matter to them.
EVALUATION_PRESETS = {
    "gta5": {},
    "synthia": {"source": "synthia"},
    "gta5_released": {"gta5_size_as_released": True},
    "synthia_released": {"source": "synthia"},
}
# Streets, the embedded data, has images of an eighth of Cityscapes' width and height; so are the views.
STREETS_DATA = {
    "data_root": "data/streets",
    "num_classes": 13,
    "backbone": "tiny",
    "num_workers": 0,
    "val_batch_size": 10,
}
STREETS = {
    **STREETS_DATA,
    "mean_width": 275,
    "crop_width": 112,
    "crop_height": 64,
    "dropout": 0.0,  # 32 feature channels have none to spare
    "head_lr_factor": 1.0,  # the backbone is as new as the head
    "log_every": 10,
    "panels_every": 100,
}
# The network is trained from scratch, so that its batch norm has seen no other images: statistics that mix both
# domains fit neither.
STREETS_ADAPT = {**STREETS, "adabn": True}
