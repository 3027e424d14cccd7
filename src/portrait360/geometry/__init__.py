"""Where things are: rotations, camera labels, the posed body, and the way from posed to canonical space."""
