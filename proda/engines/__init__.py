"""The trainers and the evaluator: each function here returns an Ignite ``Engine`` whose step is one iteration.

``events`` describes the order of an iteration. Where to look:
    - ``supervised``: the source loss, which all stages share; source-only training and the oracle.
    - ``adversarial``: the warm-up.
    - ``denoise``: stage 1, with equations 3 and 4 of the paper; equation 6 is in ``proda.handlers.prototypes``.
    - ``distill``: stages 2 and 3.
    - ``online``: online self-training, the base of DAFormer and MIC.
    - ``inference`` and ``labelling``: validation, and writing pseudo labels.

The formulas themselves are pure functions of tensors in ``proda.method``.
"""
