"""Exact n-gram leakage of benchmarks into corpora."""
