"""Body poses learned in training: read from real images, corrected, remembered, aligned."""
