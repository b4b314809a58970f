"""What the commands share: their common arguments, and errors told in words with an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import click

EXIT_FAILURE, EXIT_BAD_INPUT, EXIT_GATE = 1, 2, 3

CONFIG = click.argument("config", type=click.Path(path_type=Path))
SET = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key: --set model.l2=1e-4"
)
REPORTS = click.option("--reports", metavar="FOLDER", help="Folder of the reports, or a URL.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")


def answers_in_words(command: Callable[..., None]) -> Callable[..., None]:
    """Turns the package's errors into one message on standard error and an exit code."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        from influence_batch.errors import InputError, RunError

        try:
            command(*args, **kwargs)
        except InputError as error:
            stop(str(error), EXIT_BAD_INPUT)
        except RunError as error:
            stop(str(error), EXIT_FAILURE)
        except MemoryError:
            stop("out of memory; lower memory_limit so that less is held at a time", EXIT_FAILURE)
        except OSError as error:
            stop(f"{error.filename or 'file system'}: {error.strerror or error}", EXIT_FAILURE)

    return wrapped


def shown(text: str) -> str:
    """A text without the secrets of URLs in it; `--help` needs nothing of the library that hides them."""
    from influence_batch.redaction import redacted

    return redacted(text)


def stop(message: str, code: int) -> NoReturn:
    """Say what is wrong, and end with that exit code."""
    for line in shown(message).splitlines():
        click.echo(f"error: {line}", err=True)
    sys.exit(code)
