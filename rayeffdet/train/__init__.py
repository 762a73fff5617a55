"""The optimisation loop and what it saves."""
