"""Losses: pure tensor functions over (row, label, weight) triples. They know torch but not Megatron."""
