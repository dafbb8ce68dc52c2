"""``python -m bids_scseg`` is the BIDS App."""

import sys

from bids_scseg.cli.app import main

sys.exit(main())
