"""``python -m labelsmooth``"""

import sys

from labelsmooth.cli import main

sys.exit(main())
