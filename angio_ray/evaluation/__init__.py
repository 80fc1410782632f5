"""What scores, labels and runs say: figures with their intervals, thresholds, agreement of readers, comparisons of runs."""
