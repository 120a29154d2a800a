"""Who is at the other end of a Unix socket: told by the kernel as it was when it connected."""

import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass

_UCRED = struct.Struct("3i")
_SO_PEERGROUPS = 59  # of asm-generic/socket.h; the socket module does not name it
_ANSWER_MAX = 1024  # of the socket module


@dataclass(frozen=True, slots=True)
class Peer:
    pid: int
    uid: int
    gids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Admission:
    """Root, the worker's own account, and the members of one group, if one is named."""

    uid: int
    gid: int | None = None

    def admits(self, peer: Peer) -> bool:
        return peer.uid in (0, self.uid) or self.gid in peer.gids


def peer_of(connection: socket.socket) -> Peer:
    """Raises OSError."""
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid, uid, frozenset({gid, *_further_groups(connection, uid, gid)}))


def _further_groups(connection: socket.socket, uid: int, gid: int) -> list[int]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _ANSWER_MAX)
    except OSError:  # an older kernel, or very many groups: what the account is a member of by now
        return _groups_of_account(uid, gid)
    return [number for (number,) in struct.iter_unpack("I", raw)]


def _groups_of_account(uid: int, gid: int) -> list[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        return []


def gid_of(group: str) -> int:
    """Raises OSError, so that a group which is missing is waited for like a folder that is."""
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise FileNotFoundError(0, f"there is no group {group}") from None
