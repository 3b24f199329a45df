"""`python -m mithridate.cli` is `mithridate`."""

import sys

from mithridate.cli import main

if __name__ == "__main__":
    sys.exit(main())
