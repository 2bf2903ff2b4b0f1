"""`python -m fastcifar schedule|predict|doctor`, where the `fastcifar` command is not installed."""

import sys

from fastcifar.cli import main

sys.exit(main())
