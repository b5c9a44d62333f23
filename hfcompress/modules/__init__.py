"""The few modules a compressed model may contain, and the functions that put them there."""
