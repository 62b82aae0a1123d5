"""Two SGLang servers as a pair: described, compared, started together, tried out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from rl_onoff.errors import (
    ConfigurationError,
    InternalError,
    LoadError,
    UnsupportedModel,
    WorkerLost,
    WorkerUnavailable,
)
from rl_onoff.version import __version__
from workers.backends.base import Draft
from workers.backends.hf import load as loading
from workers.backends.hf import vocabulary as vocabularies
from workers.backends.hf.vocabulary import kept_eos
from workers.backends.sglang import VERSION
from workers.backends.sglang.describe import Described, describe
from workers.backends.sglang.endpoint import Endpoint
from workers.backends.sglang.model import SGLangModel
from workers.backends.sglang.options import Options, arguments, device_of, environment, on_one_gpu, options_of
from workers.backends.sglang.remote import RemoteModel
from workers.backends.sglang.selfcheck import Sample, check_exact, noise_floors, sampled
from workers.backends.sglang.server import Server
from workers.libraries import versions
from workers.logprobs import described
from workers.wire import Done, Frame, Generate, ModelInfo, PairInfo, Side, Tokens, Usage, WorkerSpec

T = TypeVar("T")
Servers = tuple[Endpoint, Endpoint]

#: Tokens of a continuation that nobody is waiting to judge: the first alone, soon; then twice as many each time.
_LONGEST_DRAFT: Final = 16


class SGLangPair:
    """Rows meet in the worker's memory, where one thread judges them."""

    pass_costs = None

    def __init__(self, info: PairInfo, servers: Servers, sequences: int) -> None:
        self.info = info
        self.a, self.b = (
            (SGLangModel if isinstance(server, Server) else RemoteModel)(model, server, sequences)
            for model, server in zip((info.a, info.b), servers, strict=True)
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judge")

    @property
    def steps(self) -> int:
        return self.a.steps + self.b.steps

    async def compute(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    async def generate(self, job: Generate) -> AsyncIterator[Frame]:
        """As `workers.generation.generate`, several tokens to a request: drafts that nobody judges."""
        model, eos = (self.a, self.info.a.eos_ids) if job.side == "a" else (self.b, self.info.b.eos_ids)
        ends = frozenset() if job.ignore_eos else frozenset(eos)
        ids, end, count = list(job.ids), len(job.ids) + job.max_tokens, 1
        usage = Usage()
        async with model.sequence() as sequence:
            while len(ids) < end:
                before = sequence.forwards
                draft = await sequence.draft(ids, min(count, end - len(ids)), job.sampling, ends)
                ids += draft.tokens
                more_of: list[dict[str, Any]] = [{}] * len(draft.tokens)
                if job.logprobs is not None:
                    more_of = await self.compute(_described, draft, job.logprobs)
                for passes, (token, more) in enumerate(zip(draft.tokens, more_of, strict=True), before + 1):
                    usage = Usage(passes) if job.side == "a" else Usage(b_forwards=passes)
                    yield Tokens([token], usage, **more)
                if ids[-1] in ends:
                    yield Done(usage, "stop")
                    return
                count = min(2 * count, _LONGEST_DRAFT)
        yield Done(usage, "length")

    async def until_lost(self) -> WorkerLost:
        """Returns once a server has ended: the pair is of no use any more."""
        ends = {asyncio.create_task(model.server.until_ended()): model for model in (self.a, self.b)}
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            return ends[done.pop()].lost()
        finally:
            for task in ends:
                task.cancel()

    async def disconnect(self) -> None:
        """Close what belongs to this event loop; the servers live on."""
        await asyncio.gather(self.a.close(), self.b.close())
        self._thread.shutdown()

    async def close(self) -> None:
        await self.disconnect()
        for model in (self.a, self.b):
            model.server.stop()


def _described(draft: Draft, count: int) -> list[dict[str, Any]]:
    """Of each drafted token, the fields of its frame."""
    told = described(draft.rows, draft.tokens, count)
    fields = zip(told.tokens, told.top_ids, told.top_logprobs, strict=True)
    return [{"logprobs": [own], "top_ids": [ids], "top_logprobs": [values]} for own, ids, values in fields]


def load(spec: WorkerSpec) -> SGLangPair:
    """Start both servers and try them out. Raises a `LoadError`; nothing is left running then."""
    info, servers = start(spec)
    return SGLangPair(info, servers, spec.sequences)


def start(spec: WorkerSpec) -> tuple[PairInfo, Servers]:
    """As `load`, without the client."""
    options = options_of(spec)
    a, b = (describe(model, trust_remote_code=spec.trust_remote_code) for model in (spec.a, spec.b))
    vocabulary = vocabularies.shared(a.tokenizer, b.tokenizer, options.allow_extra_tokens)
    vocab_size = min(vocabulary.size, a.columns, b.columns)
    info = PairInfo(
        name=spec.pair,
        backend="sglang",
        version=__version__,
        libraries=versions(),
        a=_info(spec, "a", a, vocab_size),
        b=_info(spec, "b", b, vocab_size),
        tokenizer=vocabularies.tokenizer_json(a.tokenizer, spec.a.name),
        special_tokens={k: v for k, v in a.tokenizer.special_tokens_map.items() if isinstance(v, str)},
        warnings=[*vocabulary.warnings, *_other_version()],
    )
    servers: list[Endpoint] = []
    try:
        deadline = time.monotonic() + options.start_seconds
        servers.append(_server(spec, "a", options, info.a, a.folder))
        if on_one_gpu(spec, options):  # what memory B may take is counted from what A has left
            servers[0].wait_ready(deadline)
        servers.append(_server(spec, "b", options, info.b, b.folder))
        for server, model in zip(servers, (info.a, info.b), strict=True):
            server.wait_ready(deadline)
            if (longest := server.information()["max_req_input_len"] - 1) < model.max_len:
                raise LoadError(
                    f"the key-value cache of model {model.name} holds {longest} tokens, its context {model.max_len}: "
                    "set the pair's max_len lower, or mem_fraction_static or max_total_tokens of its server higher"
                )
        pair = (servers[0], servers[1])
        return _tried(info, pair, spec.sequences, (a.folder, b.folder)), pair
    except BaseException:
        for server in servers:
            server.stop()
        raise


def _other_version() -> list[str]:
    found = version("sglang")
    if found == VERSION:
        return []
    return [f"SGLang is {found}; this backend was made for {VERSION} and tested with no other"]


def _server(spec: WorkerSpec, side: Side, options: Options, info: ModelInfo, folder: Path) -> Endpoint:
    model, remote = (spec.a, options.remote_a) if side == "a" else (spec.b, options.remote_b)
    if remote is not None:
        return Endpoint(model.name, remote.url, _key(model.name, remote.key_file))
    words = arguments(spec, side, options, info, folder)
    return Server(model.name, words, environment(model, options), info.vocab_size)


def _key(name: str, file: str | None) -> str:
    try:
        return Path(file).expanduser().read_text().strip() if file else ""
    except OSError as error:
        raise ConfigurationError(f"key_file of model {name}: {error.strerror}") from error


def _info(spec: WorkerSpec, side: Side, described: Described, vocab_size: int) -> ModelInfo:
    model = spec.a if side == "a" else spec.b
    max_len = loading.context_length(described, spec.max_len)
    if described.window is not None and max_len > described.window:
        raise UnsupportedModel(
            f"model {model.name} attends to a window of {described.window} tokens, which SGLang does not observe for "
            f"every architecture: set max_len to {described.window} or less, or use the hf backend"
        )
    return ModelInfo(
        name=model.name,
        source=model.path or "",
        revision=model.revision,
        fingerprint=loading.fingerprint(described.folder),
        dtype=described.dtype(model),
        device=device_of(model),
        vocab_size=vocab_size,
        logit_columns=described.columns,
        max_len=max_len,
        eos_ids=kept_eos(model.name, loading.eos_ids(described, described.tokenizer), vocab_size),
        chat_template=loading.chat_template(described.tokenizer),
        parameters=described.parameters,
    )


def _tried(info: PairInfo, servers: Servers, sequences: int, folders: tuple[Path, Path]) -> PairInfo:
    """With the noise floors of the pair. Raises LoadError where its rows are not the models'."""

    async def sample() -> Sample:
        pair = SGLangPair(info, servers, sequences)
        try:
            return await sampled(pair)
        finally:
            await pair.disconnect()

    try:
        with ThreadPoolExecutor(1) as thread:  # an event loop of its own: we may be called from within one
            tried = thread.submit(asyncio.run, sample()).result()
    except (InternalError, WorkerLost, WorkerUnavailable) as error:
        raise LoadError(f"pair {info.name} gives no rows: {error.detail}") from error
    noise = noise_floors(info, tried)
    for model, folder, rows in zip((info.a, info.b), folders, tried.together, strict=True):
        if model.device == "cpu" and model.dtype == "float32":
            check_exact(model, folder, tried.text, rows)
    return msgspec.structs.replace(info, noise=noise)
