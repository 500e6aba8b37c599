"""A TCP proxy between a Redis client and a real server that fails on command, at an exact command.

Both directions are cut into whole RESP frames, so "after k commands" means k, however they were batched. One thread
takes every decision, so k is exact over all connections together. A cut waits (DRAIN_S at most) for the replies of
what it has forwarded: when the client sees its connection end, the k commands have been executed and their replies
delivered. Replies belong to commands in order, one each; RESP3 pushes pass beside them. Pub/sub confirmations and
CLIENT REPLY OFF break that match: count no replies on such a connection.
"""

from __future__ import annotations

import select
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from functools import partial
from time import monotonic
from typing import Self

Command = tuple[bytes, ...]
DRAIN_S, LINGER_S = 1.0, 0.25  # a cut's wait for replies under way; then for the client to take them
CHUNK, BACKLOG, LOG_MAX = 1 << 16, 1 << 20, 100_000
HANDSHAKE = frozenset({b"HELLO", b"AUTH", b"CLIENT", b"SELECT", b"PING"})
Mode = Enum("Mode", ["PASS", "CUT", "CUT_REPLY", "DROP_REPLY", "SWALLOW", "REFUSE"])


def not_handshake(command: Command) -> bool:
    """What is counted unless told otherwise: all but HELLO, AUTH, CLIENT, SELECT and PING."""
    return command[0].upper() not in HANDSHAKE


class Frames:
    """Cuts a stream into whole top-level RESP frames (or inline commands), resuming where the last chunk ended."""

    def __init__(self) -> None:
        self._buf, self._at, self._missing = bytearray(), 0, 1  # scanned up to; elements that the frame still lacks
        self._bulks: list[bytes] = []

    def feed(self, data: bytes) -> list[tuple[bytes, Command]]:
        """The frames that `data` completes, each with its bulk strings (a line: its words); ValueError if malformed."""
        buf, start = self._buf, 0
        frames: list[tuple[bytes, Command]] = []
        buf += data
        while (end := buf.find(b"\r\n", self._at)) >= 0:
            kind, after, inner = buf[self._at], end + 2, 0
            if kind in b"$=!" and (size := int(buf[self._at + 1 : end])) >= 0:
                after += size + 2
                if after > len(buf):
                    break
                self._bulks.append(bytes(buf[end + 2 : after - 2]))
            elif kind in b"*~>%|":  # a map holds pairs; an attribute comes before the value that it belongs to
                inner = max(int(buf[self._at + 1 : end]), 0) * (2 if kind in b"%|" else 1) + (kind in b"|")
            self._at, self._missing = after, self._missing + inner - 1
            if not self._missing:
                frame = bytes(buf[start:after])
                frames.append((frame, tuple(self._bulks if frame[0] in b"*" else frame.split())))
                start, self._missing, self._bulks = after, 1, []
        del buf[:start]
        self._at -= start
        return frames


class _Link:
    """One client's connection and its connection upstream."""

    def __init__(self, client: socket.socket) -> None:
        self.client, self.server = client, None  # type: socket.socket, socket.socket | None
        self.requests, self.replies = Frames(), Frames()
        self.inbox: deque[tuple[float, bytes]] = deque()  # arrival, chunk: waits here for the delay to pass
        self.to_server, self.to_client = bytearray(), bytearray()
        self.pending: deque[Mode] = deque()  # per command without its reply yet: what becomes of the reply
        self.held = False  # nothing more goes upstream: the last reply is the one to cut
        self.gone = False  # the client has closed
        self.ends_at: float | None = None  # being cut: drains until then; once `server` is closed, lingers until then

    def end(self) -> None:
        self.inbox.clear()
        self.ends_at = monotonic() + DRAIN_S if self.ends_at is None else self.ends_at

    def hang_up(self) -> None:
        self.ends_at = monotonic() + LINGER_S
        for waiting in (self.inbox, self.to_server, self.pending):
            waiting.clear()
        if self.server:
            self.server.close()
            self.server = None


def _flush(sock: socket.socket | None, out: bytearray) -> None:
    try:
        while sock and out:
            del out[: sock.send(out)]
    except BlockingIOError:
        return
    except OSError:  # that side has gone: reading from it tells
        out.clear()


class FaultProxy:
    """Listens on a free port of 127.0.0.1 for `upstream`: (host, port), or the path of a unix socket.

    `counted` says which commands k counts. A new fault replaces the last one; delay() goes with any of them. What has
    begun on a connection (a cut, a reply to swallow) runs to its end there, whatever is asked for next.
    """

    def __init__(self, upstream: tuple[str, int] | str, counted: Callable[[Command], bool] = not_handshake) -> None:
        self.commands = 0  # read from clients since reset(), counted or not; on a cut connection up to the cut
        self.log: list[Command] = []  # counted commands forwarded, the first LOG_MAX since reset()
        self._upstream, self._counted = upstream, counted
        self._mode, self._left, self._delay_s = Mode.PASS, 0, 0.0
        self._links: list[_Link] = []
        self._closed, self._lock = False, threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setblocking(False)
        self._woken, self._wake = socket.socketpair()
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._run, name=f"fault-proxy-{self.port}", daemon=True)
        self._thread.start()

    def reset(self) -> None:
        """Start `commands` and `log` anew; the fault and its count stay."""
        with self._lock:
            self.commands, self.log = 0, []

    def cut_after(self, k: int) -> None:
        """Forward k counted commands; at the next one end every connection, and refuse new ones until heal()."""
        self._set(Mode.CUT, k, least=0)

    def cut_reply_after(self, k: int) -> None:
        """Have command k executed, forward nothing after it on its connection, close that instead of replying."""
        self._set(Mode.CUT_REPLY, k, least=1)

    def drop_reply(self, k: int) -> None:
        """Swallow the reply of command k, and only that."""
        self._set(Mode.DROP_REPLY, k, least=1)

    def delay(self, seconds: float) -> None:
        """Hold each chunk from a client for `seconds` before forwarding it, even if the client leaves meanwhile."""
        self._set(None, delay_s=seconds)

    def swallow(self) -> None:
        """Half-open: accept and read, forward nothing (a close neither), answer nothing."""
        self._set(Mode.SWALLOW)

    def refuse(self) -> None:
        """Close new connections at accept; open ones stay (cut_after(0) ends those too)."""
        self._set(Mode.REFUSE)

    def heal(self) -> None:
        """Transparent again; what the delay held goes out at once."""
        self._set(Mode.PASS, delay_s=0.0)

    def close(self) -> None:
        """End every connection and the thread."""
        self._closed = True
        self._wake.close()  # its other end turns readable
        self._thread.join(1.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _set(self, mode: Mode | None, k: int = 0, *, least: int = 0, delay_s: float | None = None) -> None:
        if k < least:
            raise ValueError(f"k must be at least {least}, not {k}")
        with self._lock:
            if mode is not None:
                self._mode, self._left = mode, k
            self._delay_s = self._delay_s if delay_s is None else delay_s
        with suppress(OSError):  # full: it wakes anyway; closed: nothing to wake
            self._wake.send(b"!")

    def _run(self) -> None:
        try:
            while not self._closed:
                with self._lock:
                    for link in tuple(self._links):
                        self._guarded(self._tend, link)
                    reads, writes, wait_s = self._interest()
                ready, _, _ = select.select(reads, writes, [], wait_s)
                with self._lock:
                    for sock in ready:
                        reads[sock]()
        finally:
            for link in tuple(self._links):
                self._drop(link)
            for sock in (self._listener, self._woken, self._wake):
                sock.close()

    def _interest(self) -> tuple[dict[socket.socket, Callable[[], object]], list[socket.socket], float]:
        reads: dict[socket.socket, Callable[[], object]] = {self._listener: self._accept}
        reads[self._woken] = partial(self._woken.recv, CHUNK)
        writes: list[socket.socket] = []
        times = [monotonic() + 60.0]
        for link in self._links:
            if not link.gone and len(link.to_server) < BACKLOG:
                reads[link.client] = partial(self._guarded, self._from_client, link)
            if link.server and len(link.to_client) < BACKLOG:
                reads[link.server] = partial(self._guarded, self._from_server, link)
            writes += [link.client] if link.to_client else []
            writes += [link.server] if link.server and link.to_server else []
            times += [arrived + self._delay_s for arrived, _ in link.inbox][:1]
            times += [] if link.ends_at is None else [link.ends_at]
        return reads, writes, max(0.0, min(times) - monotonic())

    def _guarded(self, act: Callable[[_Link], None], link: _Link) -> None:
        try:
            act(link)
        except BlockingIOError:
            return
        except (OSError, ValueError):  # a side that fails, or bytes that are no RESP, cost that connection
            self._drop(link)

    def _accept(self) -> None:
        with suppress(OSError):
            client, _ = self._listener.accept()
            if self._mode is Mode.REFUSE:
                client.close()
                return
            client.setblocking(False)
            self._links.append(link := _Link(client))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._mode is not Mode.SWALLOW:
                self._guarded(self._dial, link)

    def _dial(self, link: _Link) -> None:
        if isinstance(self._upstream, tuple):
            link.server = socket.create_connection(self._upstream, timeout=1.0)
            link.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            link.server = socket.socket(socket.AF_UNIX)
            link.server.settimeout(1.0)
            link.server.connect(self._upstream)
        link.server.setblocking(False)

    def _from_client(self, link: _Link) -> None:
        data = b""
        with suppress(ConnectionError):
            data = link.client.recv(CHUNK)
        link.gone = not data
        if data and link.ends_at is None:
            link.inbox.append((monotonic(), data))

    def _from_server(self, link: _Link) -> None:
        data = link.server.recv(CHUNK) if link.server else b""
        for frame, _ in link.replies.feed(data):
            fate = link.pending.popleft() if link.pending and frame[0] not in b">" else Mode.PASS
            if fate is Mode.CUT_REPLY:
                return link.hang_up()
            if fate is Mode.PASS and self._mode is not Mode.SWALLOW:
                link.to_client += frame
        return None if data else link.hang_up()

    def _tend(self, link: _Link) -> None:
        now = monotonic()
        while link.inbox and link.inbox[0][0] + self._delay_s <= now:
            for frame, command in link.requests.feed(link.inbox.popleft()[1]):
                self._command(link, frame, command)
        _flush(link.server, link.to_server)
        _flush(link.client, link.to_client)
        busy = link.to_server or link.to_client or link.pending
        if link.ends_at is not None and link.server and (now >= link.ends_at or not busy):
            link.hang_up()
        if link.ends_at is None:
            if link.gone and not (link.inbox or link.to_server or self._mode is Mode.SWALLOW):
                (link.server or link.client).shutdown(socket.SHUT_WR)
        elif link.server is None and (now >= link.ends_at or (link.gone and not link.to_client)):
            self._drop(link)
        elif link.server is None and not link.to_client:
            link.client.shutdown(socket.SHUT_WR)

    def _command(self, link: _Link, frame: bytes, command: Command) -> None:
        if not command or link.held or link.ends_at is not None:
            return
        self.commands += 1
        if self._mode is Mode.SWALLOW:
            return
        fate = Mode.PASS
        if self._counted(command):
            if self._mode is Mode.CUT and self._left == 0:
                self._mode = Mode.REFUSE
                for each in self._links:
                    each.end()
                return
            self._left -= 1
            if self._left == 0 and self._mode in {Mode.CUT_REPLY, Mode.DROP_REPLY}:
                fate, self._mode = self._mode, Mode.PASS
            if len(self.log) < LOG_MAX:
                self.log.append(command)
        link.held = fate is Mode.CUT_REPLY
        if link.server is None:
            self._dial(link)
        link.to_server += frame
        link.pending.append(fate)

    def _drop(self, link: _Link) -> None:
        link.hang_up()
        link.client.close()
        if link in self._links:
            self._links.remove(link)
