"""Backbones: networks from images to three feature maps."""
