"""`python -m fastcifar COMMAND ...`, where the `fastcifar` command is not installed."""

import sys

from fastcifar.cli.main import main

sys.exit(main())
