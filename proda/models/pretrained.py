from proda.models.weights import load_imagenet, load_simclr  # noqa: F401
