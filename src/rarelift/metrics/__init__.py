"""Scores: images and texts in, numbers out. Nothing here knows about pipelines."""
