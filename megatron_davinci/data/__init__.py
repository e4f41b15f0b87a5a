"""Corpora to deterministic batches."""
