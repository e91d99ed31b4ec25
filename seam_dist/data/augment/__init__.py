"""Training augmentation: geometry, color, and one module for each kind of training."""
