"""Executing a recipe: the one loop over stages, and the folder it fills."""
