"""Choosing a recipe's values: trials on a held-out part of the training split, then the sizes asked for, run whole."""
