"""Where a detector's network is from: darknet's files, or a definition or model file of another kind."""
