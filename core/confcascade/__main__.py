"""``python -m confcascade``."""

from confcascade.cli import main

main()
