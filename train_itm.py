"""Fine-tune a recipe: python train_itm.py --config configs/itm-flickr-base-hn.yaml [--IAIS singular] [--set a.b=c]

Several processes: torchrun --nproc-per-node 8 train_itm.py ... or horovodrun -np 8 python train_itm.py --config ...
"""

import sys

from crossmodal.cli import run

if __name__ == "__main__":
    sys.exit(run(["train", *sys.argv[1:]]))
