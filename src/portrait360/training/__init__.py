"""Training: schedules, augmentation, losses, one step, and the loop around it."""
