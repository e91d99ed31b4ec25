"""Optional packages: tried by importing them, since a package that is there may still be broken."""

from __future__ import annotations

import importlib
import re
from importlib.metadata import packages_distributions

# How a package compiled for another numpy fails, in words that name neither of the two.
_OTHER_NUMPY = re.compile(
    r"numpy\.\w+ size changed|_ARRAY_API|numpy\.core\.multiarray failed|module compiled against|compiled using NumPy"
)
# Why an import failed: a second attempt in the same process may fail with a message of no use.
_broken: dict[str, str] = {}


def require_package(module: str, *, needed_by: str, extra: str | None = None) -> None:
    """Import `module`; raise ValueError with the reason and the remedy when that fails.

    needed_by: the setting or option that asks for it, with its value; extra: the extra of seam-dist that installs it.
    """
    source = f"'seam-dist[{extra}]'" if extra else "seam-dist"
    package = module.partition(".")[0]
    if (problem := _broken.get(module)) is None:
        try:
            importlib.import_module(module)
            return
        except ModuleNotFoundError as error:
            if error.name is not None and f"{module}.".startswith(f"{error.name}."):
                raise ValueError(
                    f"{needed_by} needs the package {package}, which is not installed: pip install {source}"
                ) from None
            problem = str(error)
        # A broken extension raises anything: ImportError, ValueError, AttributeError, SystemError, OSError.
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        problem = _broken[module] = " ".join(problem.split())
    if _OTHER_NUMPY.search(problem):
        problem += "; it was built for another version of numpy"
    # pip knows pydensecrf as pydensecrf2. Its --force-reinstall would bring torch and all the rest anew.
    distribution = next(iter(packages_distributions().get(package, [package])))
    raise ValueError(
        f"{needed_by} needs the package {package}, which is installed but broken ({problem}): reinstall it, pip "
        f"uninstall -y {distribution} && pip install --no-cache-dir {source}"
    )
