"""Lets another process end this one with an exit code of our choice while Python's interpreter lock is held.

A thread of the C library waits for a message in a POSIX message queue (mq_notify with SIGEV_THREAD, mq_notify(3)) and calls
`_exit` with the code. No Python runs in that thread.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import sys

_SIGEV_THREAD = 2


class _Event(ctypes.Structure):
    """struct sigevent of Linux on 64-bit machines."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("rest", ctypes.c_char * 32),
    )


class _QueueSizes(ctypes.Structure):
    """struct mq_attr."""

    _fields_ = (
        ("flags", ctypes.c_long),
        ("messages", ctypes.c_long),
        ("bytes", ctypes.c_long),
        ("waiting", ctypes.c_long),
        ("rest", ctypes.c_long * 4),
    )


def listen(code: int) -> int | None:
    """Descriptor of a queue; after a message in it this process exits with `code`. None where the system has no queues."""
    if not sys.platform.startswith("linux") or sys.maxsize < 2**32:
        return None
    library = ctypes.CDLL(None, use_errno=True)
    name = f"/dist_metaxlm-{secrets.token_hex(8)}".encode()
    sizes = _QueueSizes(messages=1, bytes=1)
    try:
        queue = int(library.mq_open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, ctypes.byref(sizes)))
    except AttributeError:
        return None
    if queue < 0:
        return None
    library.mq_unlink(name)
    function = ctypes.cast(library._exit, ctypes.c_void_p).value
    event = _Event(value=code, notify=_SIGEV_THREAD, function=function)
    if library.mq_notify(queue, ctypes.byref(event)) != 0:
        os.close(queue)
        return None
    return queue


def end(queue: int) -> bool:
    """Send the message into the inherited `queue`; whether that worked."""
    return int(ctypes.CDLL(None).mq_send(queue, b"x", ctypes.c_size_t(1), ctypes.c_uint(0))) == 0
