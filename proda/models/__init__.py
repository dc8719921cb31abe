"""Networks, pretrained backbones, and files of weights."""
