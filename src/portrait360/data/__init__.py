"""Datasets: their layout, reading, writing, sampling, sharding, inspection."""
