"""Databases, datasets, batches, tokenizers, negatives and the built-in demo world."""
