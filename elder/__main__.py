"""``python -m elder``: the library's command line."""

from elder.cli import main

main()
