"""python -m seqexport."""

import sys

from seqexport.cli import main

if __name__ == "__main__":
    sys.exit(main())
