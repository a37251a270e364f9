"""`python -m paredown.apps.detector.train`: another name of `paredown train`."""

import sys

from paredown.apps.cli.main import app

if __name__ == "__main__":
    app(["train", *sys.argv[1:]], prog_name="paredown")
