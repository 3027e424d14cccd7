"""Measuring models, and the tables of what was measured."""
