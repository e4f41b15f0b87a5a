"""A network of a sandbox's own in which packets are swallowed: what waits for an answer waits until its own timeout.

A virtual wire whose other end nobody listens to, with the default route over it. Of IPv6 there is nothing.
"""

import os
import shutil

_ADDRESS, _NEIGHBOUR = "10.254.0.1/30", "10.254.0.2"
_MAKE = (
    "ip link set lo up",
    "ip link add out0 type veth peer name out1",
    f"ip addr add {_ADDRESS} dev out0",
    "ip link set out0 up",
    "ip link set out1 up",
    f"ip neigh add {_NEIGHBOUR} lladdr 02:00:00:00:00:02 dev out0 nud permanent",
    f"ip route add default via {_NEIGHBOUR} dev out0",
)


def black_hole() -> list[str]:
    """A program's first words that put it into such a network."""
    path = f"{shutil.which('ip') or 'ip'}"
    script = " && ".join(line.replace("ip ", f"{path} ", 1) for line in _MAKE)
    own_user = [] if os.geteuid() == 0 else ["--map-root-user"]
    unshare = shutil.which("unshare") or "unshare"
    return [unshare, *own_user, "--net", "/bin/sh", "-c", f'{{ {script}; }} || exit 125; exec "$@"', "sh"]
