"""The single rule by which settings for a method, variant or network replace general settings."""

from collections.abc import Mapping
from typing import Any

from lowrank.settings.alternatives import Alternatives
from lowrank.settings.choices import replaced_by


def merged(base: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base with entries replaced, at any depth.

    A mapping is merged entry by entry. Any other value, including a list, replaces the value in the
    base. Null removes an entry of the base, so that its default applies. An entry also removes base
    entries that it excludes: the training budget in another unit, or the settings of another rank
    rule.
    """
    dropped = replaced_by(entries)
    for alternatives in Alternatives.__subclasses__():
        dropped |= alternatives.unused_with(entries.get(alternatives.discriminator))
    result = {name: value for name, value in base.items() if name not in dropped}
    for name, value in entries.items():
        base_value = result.get(name)
        if value is None and name in result:
            del result[name]
        elif isinstance(value, Mapping) and isinstance(base_value, Mapping):
            result[name] = merged(base_value, value)
        else:
            result[name] = value
    return result
