"""Pictures, videos and meshes of portraits."""
