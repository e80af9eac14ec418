"""`python -m imprompt` is `imprompt`."""

import sys

from imprompt.cli import main

sys.exit(main())
