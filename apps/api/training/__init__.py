"""`paredown train`: from labelled images to weights, and the recipe that a run takes."""
