"""The one rule by which settings for a method, a variant or a network replace general ones."""

from collections.abc import Mapping
from typing import Any

from lowrank.config.choices import replaced_by


def merged(base: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
    """The base with entries replaced, at any depth.

    A mapping is merged entry by entry; any other value, a list among them, replaces the one in the
    base. Null takes an entry of the base out, so that its default holds. An entry also takes out
    what cannot stand beside it: the budget in another unit, the settings of another rank rule.
    """
    void = replaced_by(entries)
    result = {name: value for name, value in base.items() if name not in void}
    for name, value in entries.items():
        before = result.get(name)
        if value is None and name in result:
            del result[name]
        elif isinstance(value, Mapping) and isinstance(before, Mapping):
            result[name] = merged(before, value)
        else:
            result[name] = value
    return result
