"""Scoring many pairs fast."""
