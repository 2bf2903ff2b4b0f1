"""Trains CIFAR-10 from the command line: flags -> Config, train, run folder, exit code.

    python train_fast.py --epochs 30

Exit codes: 0 done; 2 wrong use or bad input (one line on stderr); 3 training diverged; 130/143 interrupted, saved.
"""

from __future__ import annotations

import sys

from fastcifar.cli.main import train

if __name__ == "__main__":
    sys.exit(train(sys.argv[1:]))
