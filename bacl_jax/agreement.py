"""What processes that must agree do not agree on."""

import json
from collections.abc import Mapping
from typing import Any


def differences(said: Mapping[int, Mapping[str, Any]]) -> str:
    """What the processes do not agree on: each name with its values and the processes that have them. Empty: they agree."""
    parts = []
    for name in sorted(set().union(*said.values())):
        holders: dict[str, list[int]] = {}
        for process in sorted(said):
            holders.setdefault(json.dumps(said[process].get(name)), []).append(process)
        if len(holders) > 1:
            values = [f"{value} in process {', '.join(map(str, who))}" for value, who in holders.items()]
            parts.append(f"{name} is {' and '.join(values)}")
    return "; ".join(parts)
