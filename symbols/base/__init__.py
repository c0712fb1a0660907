"""The embedded base: what makes it, from nothing."""
