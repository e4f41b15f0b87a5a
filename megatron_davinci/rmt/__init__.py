"""Reinforcement mid-training, after the paper "RMT": what is asked when, and what an answer is worth."""
