"""Keeps the stack that a thread's signal handlers run on.

OpenVINO gives a thread that opens a model another one (sigaltstack(2)), and puts the one before
back when the model ends. Of two models that may be the one of a model that has ended already: the
next signal would end the process with SIGSEGV.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager


class SignalStack(ctypes.Structure):
    """`stack_t` of signal.h."""

    _fields_ = (
        ("ss_sp", ctypes.c_void_p),
        ("ss_flags", ctypes.c_int),
        ("ss_size", ctypes.c_size_t),
    )


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Put the signal stack of this thread back as it was."""
    library, before = ctypes.CDLL(None), SignalStack()
    library.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        library.sigaltstack(ctypes.byref(before), None)
