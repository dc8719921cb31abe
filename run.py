"""Start one experiment file: ``python run.py experiments/stage1_denoise.py --source=synthia``."""

import sys

from proda.cli.launch import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
