"""Benchmarks: what they ask and how answers are scored, one file for each way of scoring."""
