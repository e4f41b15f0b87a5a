"""Reinforcement learning from rollouts: prompts, grading, trees, engines, objectives."""
