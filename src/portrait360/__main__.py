"""`python -m portrait360` is the command `portrait360`."""

from portrait360.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
