"""Finds libfastrun.so and declares its functions, as fastrun.h does."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, byref, c_bool, c_char_p, c_float, c_int, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Callable, Iterator, List

NAME = "libfastrun.so"

#: FASTRUN_ABI_VERSION of the header that the declarations below follow.
ABI_VERSION = 1

OK, END, USER_ERROR, UNSUPPORTED, BUSY, BUG, FAULT = range(7)


class FastrunError(Exception):
    """What went wrong, and what to do."""


class UserError(FastrunError, ValueError):
    """The input is wrong: a file, an argument, a prompt that doesn't fit."""


class Unsupported(FastrunError):
    """Valid input that this build or this machine can't run."""


class Busy(FastrunError):
    """There is no room for the request now; try again later."""


class Bug(FastrunError):
    """The library broke a promise of its own."""


class Fault(FastrunError):
    """The GPU failed in the middle of its work; another runner, or another process, may use it again."""


_ERRORS = {USER_ERROR: UserError, UNSUPPORTED: Unsupported, BUSY: Busy, BUG: Bug, FAULT: Fault}

_SIGNATURES = {
    "fastrun_version": (c_char_p, []),
    "fastrun_abi_version": (c_uint32, []),
    "fastrun_last_error": (c_char_p, []),
    "fastrun_open": (c_int, [c_char_p, c_char_p, POINTER(c_void_p)]),
    "fastrun_close": (None, [c_void_p]),
    "fastrun_model_info": (c_char_p, [c_void_p]),
    "fastrun_stats": (c_int, [c_void_p, c_char_p, c_size_t, POINTER(c_size_t)]),
    "fastrun_generate": (c_int, [c_void_p, c_char_p, POINTER(c_void_p)]),
    "fastrun_next": (c_int, [c_void_p]),
    "fastrun_update_json": (c_char_p, [c_void_p]),
    "fastrun_cancel": (None, [c_void_p]),
    "fastrun_generation_free": (None, [c_void_p]),
    "fastrun_tokenize": (
        c_int,
        [c_void_p, c_char_p, c_size_t, c_bool, c_bool, POINTER(c_uint32), c_size_t, POINTER(c_size_t)],
    ),
    "fastrun_encode": (c_int, [c_void_p, c_char_p, POINTER(c_uint32), c_size_t, POINTER(c_size_t)]),
    "fastrun_detokenize": (
        c_int,
        [c_void_p, POINTER(c_uint32), c_size_t, c_bool, c_char_p, c_size_t, POINTER(c_size_t)],
    ),
    "fastrun_embed": (c_int, [c_void_p, c_char_p, POINTER(c_float), c_size_t, POINTER(c_size_t)]),
}


def _candidates() -> Iterator[Path]:
    here = Path(__file__).resolve().parent
    yield here / NAME
    for start in (here, Path.cwd()):
        for folder in (start, *start.parents):
            if (folder / "ffi" / "include" / "fastrun.h").is_file():
                yield folder / os.environ.get("CARGO_TARGET_DIR", "target") / "release" / NAME


def _load() -> ctypes.CDLL:
    named = os.environ.get("FASTRUN_LIBRARY")
    if named:
        # Whoever names a file wants that one or an error.
        library = ctypes.CDLL(named)
    else:
        found = next((path for path in _candidates() if path.is_file()), None)
        try:
            library = ctypes.CDLL(str(found or NAME))
        except OSError as error:
            raise ImportError(
                f"can't load {found or NAME}: {error}; build it with `cargo build --release -p fastrun-ffi`, or set "
                "FASTRUN_LIBRARY to its path"
            ) from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    version = library.fastrun_abi_version()
    if version != ABI_VERSION:
        raise ImportError(
            f"{library._name} has ABI version {version}, this package is for {ABI_VERSION}; use those of one release"
        )
    return library


library = _load()


def check(status: int) -> int:
    """Raises what the calling thread's last call failed for."""
    if status in _ERRORS:
        raise _ERRORS[status](library.fastrun_last_error().decode())
    return status


def fill(kind: type, call: Callable[..., int]) -> List:
    """The values that `call(out, capacity, byref(count))` writes, however many there are."""
    count = c_size_t()
    room = 256
    while True:
        out = (kind * room)()
        check(call(out, room, byref(count)))
        if count.value <= room:
            return out[: count.value]
        room = count.value


def fill_text(call: Callable[..., int]) -> str:
    """As `fill`, for text."""
    length = c_size_t()
    room = 256
    while True:
        out = ctypes.create_string_buffer(room)
        check(call(out, room, byref(length)))
        if length.value < room:
            return out.raw[: length.value].decode()
        room = length.value + 1
