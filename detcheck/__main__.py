"""`python -m detcheck`: the program, for when its script is not on the path."""

from __future__ import annotations

from detcheck.cli.app import main

if __name__ == "__main__":
    main()
