"""Rollouts: what was asked at which position, what was answered, and the files in which they lie."""
