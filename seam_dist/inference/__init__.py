"""Inference: from trained networks to CAMs, pseudo-labels and predictions."""
