"""Training augmentation: geometry, color, normalization, and one module for each type of training."""
