"""Tokens on disk: tokenizers, indexed datasets, packing."""
