"""Other engines' files: made from a model, checked against it, and run."""
