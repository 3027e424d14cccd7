"""Portraits in a browser: one self-contained HTML page that renders the volume itself."""
