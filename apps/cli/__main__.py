"""`python -m paredown.apps.cli`, and `python -m apps.cli` in a clone."""

from paredown.apps.cli.main import main

if __name__ == "__main__":
    main()
