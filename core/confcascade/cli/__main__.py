"""``python -m confcascade.cli``."""

from confcascade.cli import main

main()
