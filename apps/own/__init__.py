"""What apps share whose network is of the user's own code; no app itself."""
