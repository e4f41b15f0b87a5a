"""Training objectives: pure tensor functions over (row, label, weight) triples."""
