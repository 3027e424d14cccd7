"""The viewer's server: a page on this machine that turns, makes and saves portraits of any weights."""
