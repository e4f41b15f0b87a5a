"""Texts and conversations to corpora."""
