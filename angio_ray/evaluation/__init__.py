"""What finished runs say: comparisons of runs. Reads the tables, scores nothing."""
