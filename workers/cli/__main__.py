"""`python -m workers.cli` is `reliability`."""

import sys

from workers.cli import main

sys.exit(main())
