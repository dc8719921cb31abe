"""Words for messages."""


def counted(number: int, noun: str) -> str:
    """``1 image``, ``2,975 images``: a number with its noun, in the plural unless the number is 1."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
