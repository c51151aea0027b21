"""What a test may need of the machine, ``@pytest.mark.host("network namespaces")``: left out elsewhere, and said."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from functools import cache


def namespaces() -> bool:
    """Whether two of them can be joined."""
    name = f"probe{os.getpid()}"
    try:
        for words in (f"netns add {name}", f"link add {name} netns {name} type veth peer name p{name} netns {name}"):
            subprocess.run(["ip", *words.split()], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        subprocess.run(["sh", "-c", f"ip netns delete {name}"], capture_output=True)
    return True


def small_disk() -> bool:
    """Whether a process may mount one for itself."""
    words = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", "/tmp"]
    try:
        return subprocess.run(words, capture_output=True).returncode == 0
    except OSError:
        return False


NEEDS: dict[str, Callable[[], bool]] = {
    "network namespaces": namespaces,
    "a small disk": small_disk,
}


@cache
def able(need: str) -> bool:
    return NEEDS[need]()


def left_out(needs: list[str]) -> str:
    """``left out, ...: 2 tests that need a small disk``, of the needs of each test that was."""
    parts = []
    for need in sorted(set(needs)):
        count = needs.count(need)
        parts.append(f"{count} test{'s' * (count > 1)} that need{'s' * (count == 1)} {need}")
    return f"left out, as this machine does not have it: {', '.join(parts)}"
