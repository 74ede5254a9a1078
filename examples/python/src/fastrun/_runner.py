"""A bundle that is open and answers."""

from __future__ import annotations

import json
import os
import threading
import weakref
from ctypes import byref, c_float, c_uint32, c_void_p
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Type, Union

from ._library import END, Bug, FastrunError, UserError, check, fill, fill_text, library

#: Text as it is, token ids, or messages for the model's chat template (objects with a role and a content).
Input = Union[str, Sequence[int], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model without running it."""

    name: str
    architecture: str
    quantisation: str
    parameters: int
    layers: int
    #: Elements of an embedding.
    embedding: int
    #: Token ids are below this.
    vocab: int
    #: Positions of a sequence, prompt and answer together.
    context: int
    trained_context: int
    #: Sequences that may run together.
    max_sequences: int
    #: Whether it has a chat template, so that it takes messages.
    chat: bool
    #: The bundle's root hash.
    root: str


@dataclass(frozen=True)
class Token:
    """A token that was drawn, or might have been."""

    id: int
    #: What it spells: maybe a part of a character, and for a control token its name.
    bytes: bytes
    #: Natural logarithm of its probability, where `logprobs` asked for it.
    logprob: Optional[float] = None
    #: The likeliest tokens in its place, likeliest first.
    top: Tuple["Token", ...] = ()


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    #: Tokens of the prompt that were in the cache already.
    cached_tokens: int


@dataclass(frozen=True)
class Timings:
    """Seconds since the request was made."""

    first_token: Optional[float]
    total: float


@dataclass(frozen=True)
class Delta:
    """An answer goes on."""

    choice: int
    #: Text that is certain to be part of the answer; may be empty.
    text: str
    tokens: Tuple[Token, ...] = field(default=())


@dataclass(frozen=True)
class Finished:
    """Nothing comes after it, of this answer."""

    choice: int
    #: "stop", "length", "cancelled" or "timeout".
    finish_reason: str
    usage: Usage
    timings: Timings


Update = Union[Delta, Finished]


class Generation:
    """A request in progress: an iterator over the text of its first answer.

    One thread at a time may iterate; any may cancel. What is left of it is cancelled when it is closed, or collected.
    """

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer
        self._free = _finalizer(self, library.fastrun_generation_free, pointer)
        # Whoever frees it holds both: the one is held while an update is awaited, the other for moments.
        self._reading = threading.Lock()
        self._cancelling = threading.Lock()
        self._done = False
        #: The end of each answer that has ended, by its number.
        self.finished: Dict[int, Finished] = {}

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while True:
            update = self._next()
            if update is None:
                raise StopIteration
            if isinstance(update, Delta) and update.choice == 0 and update.text:
                return update.text

    def updates(self) -> Iterator[Update]:
        """All that is told of all answers."""
        while True:
            update = self._next()
            if update is None:
                return
            yield update

    def text(self) -> str:
        """Waits for the end: the rest of the first answer."""
        return "".join(self)

    @property
    def finish_reason(self) -> Optional[str]:
        """Why the first answer ended; none before it has."""
        return self.finished[0].finish_reason if 0 in self.finished else None

    def cancel(self) -> None:
        """Ends the request soon, with finish reason "cancelled"; any thread may call it."""
        with self._cancelling:
            if self._free.alive:
                library.fastrun_cancel(self._pointer)

    def close(self) -> None:
        """Cancels what has not ended, and frees it."""
        self.cancel()
        with self._reading, self._cancelling:
            self._free()

    def __enter__(self) -> "Generation":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def _next(self) -> Optional[Update]:
        with self._reading:
            if self._done or not self._free.alive:
                return None
            # ctypes lets other threads run meanwhile.
            if check(library.fastrun_next(self._pointer)) == END:
                self._done = True
                return None
            update = json.loads(library.fastrun_update_json(self._pointer))
        if "finish_reason" not in update:
            return Delta(update["choice"], update["text"], tuple(map(_token, update["tokens"])))
        if update["error"] is not None:
            raise Bug(update["error"])
        finished = Finished(
            update["choice"], update["finish_reason"], Usage(**update["usage"]), Timings(**update["timings"])
        )
        self.finished[finished.choice] = finished
        return finished


class Runner:
    """An opened bundle that serves requests, from any number of threads."""

    def __init__(
        self,
        path: Union[str, "os.PathLike[str]"],
        *,
        device: Optional[str] = None,
        threads: Optional[int] = None,
        kv_memory: Optional[int] = None,
        queue: Optional[int] = None,
        prefix_cache: Optional[bool] = None,
        spec: Optional[str] = None,
        token_budget: Optional[int] = None,
        verify: Optional[bool] = None,
    ) -> None:
        """Opens a bundle.

        device: "cpu" or "reference". threads: default one for each physical core. kv_memory: bytes of the KV cache. queue:
        requests that may wait, default 1024. prefix_cache: find what was computed for requests that start alike. spec:
        "ngram", to guess tokens ahead. token_budget: prompt tokens of a step in which others decode. verify: check the
        weights' hashes first.
        """
        options = _given(
            device=device,
            threads=threads,
            kv_memory=kv_memory,
            queue=queue,
            prefix_cache=prefix_cache,
            spec=spec,
            token_budget=token_budget,
            verify=verify,
        )
        name = os.fsencode(path)
        if b"\0" in name:
            raise UserError("a path has no NUL")
        pointer = c_void_p()
        check(library.fastrun_open(name, _json(options), byref(pointer)))
        self._pointer: Optional[int] = pointer.value
        self._close = _finalizer(self, library.fastrun_close, pointer.value)
        self.model = ModelInfo(**json.loads(library.fastrun_model_info(pointer)))

    def generate(
        self,
        input: Input,
        *,
        max_tokens: Optional[int] = None,
        temperature: Optional[float] = None,
        top_k: Optional[int] = None,
        top_p: Optional[float] = None,
        min_p: Optional[float] = None,
        typical_p: Optional[float] = None,
        repeat_penalty: Optional[float] = None,
        frequency_penalty: Optional[float] = None,
        presence_penalty: Optional[float] = None,
        repeat_last_n: Optional[int] = None,
        seed: Optional[int] = None,
        n: Optional[int] = None,
        stop: Union[str, Sequence[str], None] = None,
        ignore_eos: Optional[bool] = None,
        logprobs: Optional[int] = None,
        logit_bias: Optional[Mapping[int, float]] = None,
        grammar: Optional[Mapping[str, Any]] = None,
        timeout: Optional[float] = None,
        cache_salt: Optional[int] = None,
        tools: Optional[Sequence[Mapping[str, Any]]] = None,
        template_variables: Optional[Mapping[str, Any]] = None,
    ) -> Generation:
        """Asks for an answer, or n of them. Defaults are those of fastrun.h.

        grammar: {"json": {}}, {"json_schema": schema}, {"regex": text} or {"lark": text}.
        """
        request = _given(
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            repeat_penalty=repeat_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            repeat_last_n=repeat_last_n,
            seed=seed,
            n=n,
            stop=stop if stop is None or isinstance(stop, str) else list(stop),
            ignore_eos=ignore_eos,
            logprobs=logprobs,
            logit_bias=None if logit_bias is None else dict(logit_bias),
            grammar=grammar,
            timeout=timeout,
            cache_salt=cache_salt,
            tools=None if tools is None else list(tools),
            template_variables=template_variables,
        )
        request.update(_input(input))
        pointer = c_void_p()
        check(library.fastrun_generate(self._open(), _json(request), byref(pointer)))
        if pointer.value is None:
            raise Bug("fastrun_generate gave no generation")
        return Generation(pointer.value)

    def embed(self, input: Input) -> List[float]:
        """What a text means, as a direction of length 1; the dot product of two tells how much they have in common."""
        pointer, request = self._open(), _json(_input(input))
        return fill(c_float, lambda out, room, count: library.fastrun_embed(pointer, request, out, room, count))

    def tokenize(self, text: str, *, parse_special: bool = False, add_special: bool = False) -> List[int]:
        """Token ids. parse_special: text that spells a control token becomes it; add_special: with BOS and EOS where the model
        wants them."""
        pointer, data = self._open(), text.encode()
        return fill(
            c_uint32,
            lambda out, room, count: library.fastrun_tokenize(
                pointer, data, len(data), parse_special, add_special, out, room, count
            ),
        )

    def encode(self, input: Input) -> List[int]:
        """The token ids that a request with this input feeds the model."""
        pointer, request = self._open(), _json(_input(input))
        return fill(c_uint32, lambda out, room, count: library.fastrun_encode(pointer, request, out, room, count))

    def detokenize(self, ids: Sequence[int], *, show_special: bool = False) -> str:
        """The text of tokens; show_special: with the names of control tokens."""
        pointer = self._open()
        try:
            array = (c_uint32 * len(ids))(*ids)
        except TypeError as error:
            raise UserError(f"token ids are integers: {error}") from None
        return fill_text(
            lambda out, room, length: library.fastrun_detokenize(
                pointer, array, len(array), show_special, out, room, length
            )
        )

    def stats(self) -> Dict[str, int]:
        """The engine in figures."""
        pointer = self._open()
        text = fill_text(lambda out, room, length: library.fastrun_stats(pointer, out, room, length))
        return json.loads(text)

    def close(self) -> None:
        """Closes it; no thread may be using it. Generations go on until they are closed."""
        self._pointer = None
        self._close()

    def __enter__(self) -> "Runner":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def _open(self) -> int:
        if self._pointer is None:
            raise FastrunError("the runner is closed")
        return self._pointer


def _finalizer(owner: object, free: Callable[[int], None], pointer: Optional[int]) -> "weakref.finalize[Any, Any]":
    """Frees what an object holds when it is collected; not when the interpreter ends, for a thread may still use it then."""
    finalizer = weakref.finalize(owner, free, pointer)
    finalizer.atexit = False
    return finalizer


def _given(**values: Any) -> Dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _input(given: Input) -> Dict[str, Any]:
    if isinstance(given, str):
        return {"prompt": given}
    items = list(given)
    if items and all(isinstance(item, Mapping) for item in items):
        return {"messages": items}
    return {"tokens": items}


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise UserError(f"the parameters are no JSON: {error}") from None


def _token(token: Mapping[str, Any]) -> Token:
    return Token(token["id"], bytes(token["bytes"]), token.get("logprob"), tuple(map(_token, token.get("top", ()))))
