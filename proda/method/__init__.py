"""The computations of the paper as functions of tensors: no files, no engines, no state; they import only torch."""

IGNORE = 250  # label of pixels that are left out: unlabelled, padded or not confident
