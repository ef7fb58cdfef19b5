"""The version of the package: pyproject.toml, the command line and what runs write down take it from here."""

__version__ = "0.2.0.dev0"
