"""Runs FastInference bundles.

    from fastrun import Runner

    with Runner("model.fib") as runner:
        for piece in runner.generate("Once upon a time", max_tokens=64):
            print(piece, end="", flush=True)
"""

from ._library import Bug, Busy, Fault, FastrunError, Unsupported, UserError, library
from ._runner import Delta, Finished, Generation, Input, ModelInfo, Runner, Timings, Token, Update, Usage

#: The library's.
__version__: str = library.fastrun_version().decode()

__all__ = [
    "Bug",
    "Busy",
    "Delta",
    "FastrunError",
    "Fault",
    "Finished",
    "Generation",
    "Input",
    "ModelInfo",
    "Runner",
    "Timings",
    "Token",
    "Unsupported",
    "Update",
    "Usage",
    "UserError",
]
