"""Tensors in, tensors out: no module, no life cycle, no model."""
