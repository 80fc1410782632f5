"""What labels say of scores at a site: evaluate runs and experiments, set a bundle's threshold, have clips read by people."""
