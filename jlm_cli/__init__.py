"""jlm: a command-line judge for language-model answers."""

__version__ = "0.8.0"
