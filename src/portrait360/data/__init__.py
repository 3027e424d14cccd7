"""From scenes or photos to datasets."""
