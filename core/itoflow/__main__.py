"""`python -m itoflow`, the same as `itoflow`."""

import sys

from itoflow.cli import main

sys.exit(main())
