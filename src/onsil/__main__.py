"""`python -m onsil` is the `onsil` command."""

from onsil.cli import main

main()
