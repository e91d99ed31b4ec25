"""Benchmarks of the system's parts, and the published forms that they are compared with."""
