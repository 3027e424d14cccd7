"""What the commands do: portraits from seeds, camera and body pose of images."""
