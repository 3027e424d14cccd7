"""From photos of a person to a portrait."""
