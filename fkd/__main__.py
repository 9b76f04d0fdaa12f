"""`python -m fkd COMMAND`; `python -m fkd --help` lists the commands."""

import sys

from ._commands.main import main

if __name__ == "__main__":
    sys.exit(main())
