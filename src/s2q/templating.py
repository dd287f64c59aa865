"""Templates of pages and cards: a name that is missing is an error, and blocks leave no empty lines."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def environment(folder: Path, autoescape: bool = True) -> Environment:
    """The templates in `folder`.

    Args:
        autoescape: whether what is filled in is escaped as HTML wants it.
    """
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
