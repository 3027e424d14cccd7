"""The published networks: reading their snapshots without running them."""
