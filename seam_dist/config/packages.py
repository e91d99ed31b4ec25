"""Optional packages."""

import importlib


def require_package(module: str, *, extra: str, needed_by: str) -> None:
    """Raise ValueError."""
    try:
        importlib.import_module(module)
    except Exception as error:
        raise ValueError(f"{needed_by} needs {module} ({error}): pip install 'seam-dist[{extra}]'") from None
