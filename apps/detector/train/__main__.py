"""`python -m paredown.apps.detector.train`, and `python -m apps.detector.train` in a clone."""

from paredown.apps.detector.train.command import main

if __name__ == "__main__":
    raise SystemExit(main())
