"""Rollout engines: who answers prompts."""
