"""The paper as pure tensor functions: no files, no engines, no globals; imports torch alone."""

IGNORE = 250  # label of pixels that take part in nothing: unlabelled, padded or not confident
