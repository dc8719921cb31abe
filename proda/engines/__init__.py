"""The trainers and the evaluator: each function here returns an Ignite ``Engine`` whose step is one iteration.

Where to look:
    - ``supervised``: the source loss, which all stages share; source-only training and the oracle.
    - ``adversarial``: the warm-up.
    - ``denoise``: stage 1, with equations 3 and 4 of the paper. Equation 6, which updates the prototypes, is
      the handler ``proda.handlers.prototypes.PrototypeEMA``; the EMA teacher is ``proda.handlers.teacher.EMATeacher``.
    - ``distill``: stages 2 and 3.
    - ``contrastive``: pretraining of a backbone without labels.
    - ``inference`` and ``labelling``: validation, and writing pseudo labels.

The formulas themselves are pure functions of tensors in ``proda.method``.

One iteration of an adaptation stage, with the events of ``proda.engines.events.ProdaEvents``:
    1. Forward and backward pass of the source loss: ``SOURCE_BACKWARD_DONE``.
    2. Forward pass of the teacher, where there is one: ``TEACHER_FORWARD_DONE``. Stage 1 then rectifies the pseudo
       labels: ``LABELS_RECTIFIED``.
    3. Forward passes of the student on the target, and the target losses: ``LOSSES_READY``. This is the place for a
       loss of your own: add a weighted term to ``engine.state.losses``, computed from ``engine.state.graph``.
    4. Backward pass of the sum of these losses: ``BACKWARD_DONE``. Gradients are clipped here.
    5. Step of the student's optimizer: ``OPTIMIZER_STEPPED``. Prototypes, EMA teacher and learning rate follow it.
    6. Warm-up only: the discriminator's step, ``DISCRIMINATOR_STEPPED``.
"""
