"""Synthetic portraits with exact labels: subjects, scenes, light, rendering, and the job that renders a dataset."""
