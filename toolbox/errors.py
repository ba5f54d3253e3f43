"""The one exception the toolbox raises for what a person can mend."""

from __future__ import annotations


class ToolboxError(Exception):
    """One sentence for a person: what is wrong, and the remedy. Shown without a stack trace."""
