"""How good a trained adapter is."""
