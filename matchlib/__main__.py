"""`python -m matchlib`: the `matchlib` command."""

import sys

from matchlib.cli import main

sys.exit(main())
