"""``python -m proda`` and the command ``proda``: the same as run.py, from any folder."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    sys.path.append(sys.path.pop(0))  # the working folder: a queue.py in it must not hide the standard library's

from proda.cli.launch import main


def run() -> None:
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
