"""What every model has seen, and whether a test set was part of it."""
