"""Research programs and makers of assets: `python -m tools.NAME` from the root of a checkout. Not in the wheel."""
