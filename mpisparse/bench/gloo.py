"""torch.distributed with gloo beside MPI, for as long as a benchmark compares with it."""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import struct
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from mpisparse.comm import Communicator, agreed, from_root, gather_json
from mpisparse.errors import LaunchError, alike

#: Seconds that any step of the meeting may take, and any exchange after it.
LIMIT = 120.0

#: Seconds for one try to reach one address; a host that drops packets would keep us for minutes.
_TRY = 3.0

_SIOCGIFADDR = 0x8915
_TOKEN = 16


@contextmanager
def gloo_group(comm: Communicator, limit: float = LIMIT) -> Iterator[None]:
    """Have torch.distributed's default group, over gloo and of the ranks of `comm`, inside the block. Collective.

    Rank 0 offers its addresses and a free port, and all ranks take the first address that each of them reaches; the
    interface that leads there is the one gloo is told to use. MASTER_ADDR, MASTER_PORT and GLOO_SOCKET_IFNAME win
    where they are set.

    Raises:
        LaunchError: torch lacks gloo, or the ranks do not find each other within `limit` seconds; on all ranks.
    """
    with agreed(comm):
        if not (dist.is_available() and dist.is_gloo_available()):
            raise LaunchError("this torch was built without gloo: leave --gloo out, or install another build")
        if dist.is_initialized():
            raise LaunchError("torch.distributed is initialized already: a benchmark needs its default group")
    address, port = _meeting_place(comm)
    with agreed(comm):
        _join(comm, address, port, limit)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _join(comm: Communicator, address: str, port: int, limit: float) -> None:
    waiting = timedelta(seconds=limit)
    try:
        store = TCPStore(address, port, comm.size, comm.rank == 0, waiting)
        dist.init_process_group("gloo", store=store, rank=comm.rank, world_size=comm.size, timeout=waiting)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LaunchError(
            f"gloo's ranks did not meet at {address}:{port} within {limit:g} s ({reason}): set MASTER_ADDR, "
            "MASTER_PORT and GLOO_SOCKET_IFNAME to what reaches rank 0, or leave --gloo out"
        ) from error


def _meeting_place(comm: Communicator, environ: MutableMapping[str, str] = os.environ) -> tuple[str, int]:
    """Return an address and a port of rank 0 that every rank can connect to, the same on all. Collective.

    Sets GLOO_SOCKET_IFNAME to the interface that leads there, unless the user did.
    """
    listener = None
    with agreed(comm):
        if comm.rank == 0:
            listener = _listen()
    with _closed_at_last(listener):
        token = secrets.token_bytes(_TOKEN)
        if listener is not None:
            threading.Thread(target=_answer, args=(listener, token), daemon=True).start()
        wanted = environ.get("MASTER_ADDR")
        offer: dict[str, Any] = from_root(
            comm,
            lambda: {
                "addresses": [wanted] if wanted else [*_own_addresses().values()],
                "port": listener.getsockname()[1] if listener is not None else 0,
                "token": token.hex(),
            },
        )
        reached = [_reach(address, offer["port"], bytes.fromhex(offer["token"])) for address in offer["addresses"]]
        everyone = gather_json(comm, reached)
    common = [place for place in range(len(reached)) if all(theirs[place] for theirs in everyone)]
    if not common:
        raise alike(LaunchError(_nobody_reached(offer["addresses"], everyone)))
    local = str(reached[common[0]])
    names = {own: name for name, own in _own_addresses().items()}
    if local in names:
        environ.setdefault("GLOO_SOCKET_IFNAME", names[local])
    return offer["addresses"][common[0]], from_root(comm, lambda: _port(environ))


def _nobody_reached(addresses: list[str], everyone: list[list[str | None]]) -> str:
    lost = next(rank for rank, theirs in enumerate(everyone) if not all(theirs))
    return (
        f"no address of rank 0 ({', '.join(addresses) or 'it has none'}) can be reached by all ranks, rank {lost} for "
        "one: set MASTER_ADDR to one that can, or leave --gloo out"
    )


def _port(environ: MutableMapping[str, str]) -> int:
    """Return the port that the user named, or a free one."""
    wanted = environ.get("MASTER_PORT", "")
    if wanted:
        if not wanted.isdigit() or not 0 < int(wanted) < 65536:
            raise LaunchError(f"MASTER_PORT {wanted!r} is no port: set a number from 1 to 65535, or unset it")
        return int(wanted)
    with closing(_listen()) as listener:
        return int(listener.getsockname()[1])


def _listen() -> socket.socket:
    try:
        return socket.create_server(("", 0), backlog=1024)
    except OSError as error:
        raise LaunchError(f"rank 0 cannot listen on any port ({error}): leave --gloo out") from error


@contextmanager
def _closed_at_last(listener: socket.socket | None) -> Iterator[None]:
    try:
        yield
    finally:
        if listener is not None:
            # Closing alone would leave the thread in accept(), and the port in use.
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def _answer(listener: socket.socket, token: bytes) -> None:
    """Hand the token to whoever connects, until the listener is closed."""
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with closing(connection):
                connection.sendall(token)


def _reach(address: str, port: int, token: bytes) -> str | None:
    """Return this rank's own address on the way to `address`, or None if rank 0 is not there."""
    try:
        with closing(socket.create_connection((address, port), timeout=_TRY)) as connection:
            here = connection.getsockname()[0]
            return str(here) if connection.recv(_TOKEN, socket.MSG_WAITALL) == token else None
    except OSError:
        return None


def _own_addresses() -> dict[str, str]:
    """Return the IPv4 address of each interface by its name, those that other machines may reach first."""
    import fcntl

    found = {}
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                request = struct.pack("256s", name.encode()[:15])
                found[name] = socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24])
    return dict(sorted(found.items(), key=lambda item: ipaddress.ip_address(item[1]).is_loopback))
