"""Property tests: the same examples at every run, and no deadline, which a busy machine would miss."""

from hypothesis import settings

settings.register_profile("proda", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("proda")
