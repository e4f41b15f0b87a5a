"""Training objectives that learn from rollouts."""
