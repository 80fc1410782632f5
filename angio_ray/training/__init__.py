"""Training: labels and clips in, bundles out. `plain` is the short loop of the first bundle."""
