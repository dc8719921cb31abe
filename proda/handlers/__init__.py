"""Handlers: everything that is attached to the engines.

Those of a method are attached by the ``build`` of its stage, those of every run by ``proda.run.fit``.
``proda.engines.events`` describes the order of an iteration.
"""
