"""Recall@K of a checkpoint: python test_itm.py --checkpoint runs/x/best [--split test] [--folds 5]

Several processes: torchrun --nproc-per-node 8 test_itm.py ... or horovodrun -np 8 python test_itm.py --checkpoint ...
"""

import sys

from crossmodal.cli import run

if __name__ == "__main__":
    sys.exit(run(["test", *sys.argv[1:]]))
