"""Recall@K, relation distance, tables and plots."""
