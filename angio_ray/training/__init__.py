"""Training: labels and clips in, bundles out."""
