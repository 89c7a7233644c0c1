"""What a package offers to packages above it, by name, loaded when first used: so imports keep pointing one way."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["provider"]

PROVIDERS = {
    "policy": "headrace.tuning.policies:make_policy",
    "tuner": "headrace.tuning.opening:open_tuner",
}
"""Who answers to a name, as "module:attribute"; what is expected of it is a protocol in the package that asks."""


def provider(name: str) -> Any:
    """The object behind a name of `PROVIDERS`."""
    module, _, attribute = PROVIDERS[name].partition(":")
    return getattr(import_module(module), attribute)
