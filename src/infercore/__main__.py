"""`python -m infercore` is the `infercore` command."""

import sys

from infercore.cli import main

sys.exit(main())
