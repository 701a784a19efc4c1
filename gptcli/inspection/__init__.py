"""Inspection of a model: activations captured by forward hooks, measures of them, and plots."""
