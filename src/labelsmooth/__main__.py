"""``python -m labelsmooth``"""

import sys

from labelsmooth.cli import main

if __name__ == "__main__":
    sys.exit(main())
