"""Which exceptions are the user's to mend: they are shown as one line instead of a trace."""

from pydantic import ValidationError
from safetensors import SafetensorError


def user_errors() -> tuple[type[Exception], ...]:
    """ValueError covers s2q's own errors (pipeline, checkpoint, workspace, output); the rest comes from files."""
    return (ValueError, ValidationError, SafetensorError, FileNotFoundError, PermissionError, OSError)
