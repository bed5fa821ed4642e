"""Optimizers in the space of path values, which no positive rescaling of a network's weights can change."""
