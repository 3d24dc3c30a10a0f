"""Has Gloo use the network interface that Ray reaches a machine by.

Gloo takes the address that the machine's own name resolves to. Where that is a loopback address, as Debian's /etc/hosts
has it, workers on other machines cannot connect.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import Any

import ray.util
from ray.train.torch import TorchConfig

INTERFACE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


class RayInterfaceConfig(TorchConfig):  # type: ignore[misc]
    """Torch's backend as Ray Train sets it up, on Ray's interface."""

    @property
    def backend_cls(self) -> Any:
        """What sets a group of workers up."""
        return _Backend


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


def choose_interface() -> None:
    """Names the interface of this node's Ray address to Gloo, unless the user has named one or none has the address."""
    if INTERFACE in os.environ:
        return
    wanted = ray.util.get_node_ip_address()
    for _, name in socket.if_nameindex():
        if address_of(name) == wanted:
            os.environ[INTERFACE] = name
            return


def address_of(interface: str) -> str | None:
    """Returns the IPv4 address of an interface; None without one, or where the system does not tell."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            found = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(found[20:24])
