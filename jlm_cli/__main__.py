"""`jlm` and `python -m jlm_cli`: deaf to nothing while the rest is loaded."""

from jlm_cli import signals


def main() -> None:
    signals.leave_at_once()
    from jlm_cli.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
