"""Arithmetic in two notations: ordinary operators, and symbols that no model has seen used this way."""
