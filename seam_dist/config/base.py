"""How every section of the configuration is checked."""

from pydantic import ConfigDict

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False)
"""Unknown keys are errors, the line under a field is its description, defaults are checked, too."""
