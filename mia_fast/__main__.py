"""``python -m mia_fast`` is ``mia-fast``."""

from mia_fast.cli import main

main()
