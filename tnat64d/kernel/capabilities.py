"""What this process may do (capabilities(7)).

Owns asking. Refuses to own what a missing capability means.
"""

from __future__ import annotations

from pathlib import Path

CAP_NET_ADMIN = 12
"""linux/capability.h"""


def has(capability: int) -> bool:
    """Whether `capability` is effective."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False
