"""The chat app: a Gemma 3 text network from trained weights to 4-bit, and a terminal to talk to it."""
