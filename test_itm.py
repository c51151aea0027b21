"""Recall@K of a checkpoint: python test_itm.py --checkpoint runs/x/best [--split test] [--folds 5]

The same under torchrun: torchrun --nproc-per-node 2 test_itm.py --checkpoint ...
"""

import sys

from crossmodal.cli import run

if __name__ == "__main__":
    sys.exit(run(["test", *sys.argv[1:]]))
