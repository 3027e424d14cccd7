"""How long each stage takes, and how much memory, for every preset."""
