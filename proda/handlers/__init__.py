"""Handlers: everything that is attached to the engines. The experiment files list the handlers of each stage.

Handlers of one event run in the order in which they were attached:
    - Start of training: ``PseudoLabels`` writes missing labels.
    - Start of an iteration: ``SeedIterations``.
    - ``BACKWARD_DONE``: ``ClipGradients``, and ``AverageStatistics`` with several processes.
    - ``OPTIMIZER_STEPPED``: in stage 1 first ``PrototypeEMA``, then ``EMATeacher``; ``PolynomialDecay`` in every stage.
    - End of an iteration: ``StopOnNan``, ``Checkpoints``, ``Validation``, ``Board``. ``KeptModels`` follows each
      validation.
"""
