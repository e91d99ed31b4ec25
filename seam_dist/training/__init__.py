"""Training: one loop, one task for each training stage."""
