"""`python -m jlm_cli` is `jlm`."""

from jlm_cli.cli import main

if __name__ == "__main__":
    main()
