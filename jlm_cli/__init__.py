"""jlm: a command-line judge for language-model answers."""

__version__ = "0.7.0"
