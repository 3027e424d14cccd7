"""The portrait encoder: features, camera and body pose of an image, trained on synthetic portraits."""
