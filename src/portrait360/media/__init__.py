"""Images, plots, videos and meshes, and their files."""
