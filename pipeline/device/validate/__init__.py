"""Validation of a bundle on a device: test vectors, scores, times, and the verdict."""
