"""Handlers: everything that is attached to the engines.

Handlers of one event run in the order in which they were attached: ``build`` of the stage file attaches those of the
method, then ``proda.run.fit.attach_common_handlers`` those of every run. The order of the events is in
``proda.engines.events``.
"""
