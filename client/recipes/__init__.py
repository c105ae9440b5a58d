"""Training loops that run on the two clients."""
