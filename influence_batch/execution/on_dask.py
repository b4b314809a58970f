"""The executor of a Dask cluster: every worker thread keeps its own shards and sums over them."""

from __future__ import annotations

import asyncio
import logging
import pickle
import queue
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field
from typing import Any, TypeVar

import cloudpickle  # type: ignore[import-untyped]
import dask
from distributed import Client, Future
from distributed.client import ClosedClientError

from influence_batch.errors import ClusterError, InputError, RunError
from influence_batch.execution.failures import lost, told
from influence_batch.execution.on_scheduler import offer_to_others
from influence_batch.execution.on_workers import Packed, combine_all, hold, map_shard, reduce_shards, same
from influence_batch.execution.placement import first_run, settle, spread
from influence_batch.execution.reduction import (
    MapFunction,
    Reduction,
    RowArray,
    ShardedSource,
    Successor,
    cut,
    row_bytes,
)

T = TypeVar("T")

_logger = logging.getLogger("influence_batch")

# Partial results that this process combines itself; more are combined on workers first, as many at a time.
_FAN_IN = 8
# A state below this goes with every task; above, once with a task of its own. Measured on two local
# workers, inline and as a task: 60 kB in 19 and 25 ms a pass, 0.5 MB in 26 and 28, 4 MB in 50 and 42.
_INLINE_BYTES = 100_000
# Row-aligned values that are on their way at a time; where a pass has more, it goes by runs of shards.
_MOST_ROWS = 32 * 1024**2
_POLL = 1.0
# A worker that is lost may come back under another address (a nanny starts it again): its shards are
# only spread over the others when it does not.
_GRACE = 10.0


@dataclass
class _Held:
    """A dataset on the cluster.

    Attributes:
        source: as the last pass had it: equal tokens are kept alike, and may be opened differently.
        sent: its future.
        holdings: future and room, in bytes, by worker and shards.
    """

    source: ShardedSource
    sent: Future
    holdings: dict[tuple[str, tuple[int, ...]], tuple[Future, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    """What one slot has to do: its worker, its shards, the future of its holding (None: read them), and
    that of the dataset."""

    address: str
    shards: tuple[int, ...]
    held: Future | None
    source: Future


@dataclass
class _Queue:
    """Shards that a map still wants of one slot; `busy` of its tasks are in flight."""

    address: str
    shards: deque[int]
    held: Future | None
    source: Future
    busy: int = 0


@dataclass(frozen=True)
class _Task:
    future: Future
    shards: tuple[int, ...]
    queue: _Queue


class DaskExecutor:
    """Runs reductions on the workers of a Dask cluster.

    Shards are spread over slots, one for each worker thread, in runs of neighbours. A slot keeps what fits
    and reads the other shards at every pass. When workers come or go, shards are spread anew; what a lost
    worker held is read again by another.

    Args:
        client: connected; the caller closes it.
        cache_bytes: how much of the shards stays in memory, all workers together.
        timeout: seconds to wait for a worker where there is none.
        check: called with the addresses of workers before they first get shards; refuses by RunError.

    Raises:
        ClusterError: from every method: no worker is left, the scheduler is gone, or a task killed workers.
    """

    def __init__(
        self,
        client: Client,
        cache_bytes: int,
        *,
        timeout: float = 60.0,
        check: Callable[[Collection[str]], None] | None = None,
    ) -> None:
        self._client = client
        self._cache_bytes = cache_bytes
        self._timeout = timeout
        self._check = check
        self._slots: list[str] = []
        self._most_slots = 1
        self._version = 0
        self._known: set[str] = set()
        self._lost_since: float | None = None
        self._none_since: float | None = None
        self._datasets: dict[str, _Held] = {}
        # Work stealing takes a task from a worker that has more of them than threads, and would copy the
        # holding along. So a second task waits at a slot only where nobody steals: without it a slot is
        # idle for 7 ms between two shards (measured, two local workers), with it for 1 ms.
        self._window = 1 if self._steals() else 2

    @property
    def slots(self) -> int:
        """How many map functions run at a time."""
        return len(self._settled())

    def reduce(
        self,
        source: ShardedSource,
        reduction: Reduction[T],
        state: Any = None,
        rows: Mapping[str, RowArray] | None = None,
    ) -> T:
        if source.n_shards == 0:
            return reduction.finalize(reduction.empty())
        if rows and row_bytes(rows) * source.bounds(source.n_shards - 1)[1] > _MOST_ROWS:
            # Not all rows at once: those of some shards at a time, which the worker combines.
            most = _MOST_ROWS // (row_bytes(rows) * self.slots * self._window)
            total = reduction.empty()
            for _, value in self._streamed(source, reduce_shards, reduction, state, rows, most=most):
                total = reduction.combine(total, value)
            return reduction.finalize(total)
        # Before anything is sent: Dask may send it to any worker, so each must be known to fit.
        self._settled()
        parts = self._placed(source)
        sent = self._sent(state)
        futures: list[Future] = []
        try:
            for part in parts:
                span = source.bounds(part.shards[0])[0], source.bounds(part.shards[-1])[1]
                # Before what a map has waiting at the slot: the caller is between two of its values.
                futures.append(
                    self._submit(
                        reduce_shards,
                        part.held,
                        part.source,
                        part.shards,
                        reduction,
                        sent,
                        cut(rows, *span),
                        at=part.address,
                        priority=1,
                    )
                )
            while len(futures) > _FAN_IN:
                futures = self._combined(reduction, futures)
            total = self._fetched(futures[0], futures)
            for future in futures[1:]:
                total = reduction.combine(total, self._fetched(future, futures))
            return reduction.finalize(total)
        finally:
            _release(*futures, sent)

    def _combined(self, reduction: Reduction[Any], futures: Sequence[Future]) -> list[Future]:
        """Futures of the sums over groups of neighbours."""
        combined = []
        for start in range(0, len(futures), _FAN_IN):
            group = list(futures[start : start + _FAN_IN])
            if len(group) > 1:
                combined.append(self._submit(combine_all, reduction.combine, group, priority=2))
                # The task keeps what it combines until it is done.
                _release(*group)
            else:
                combined.extend(group)
        return combined

    def map(
        self,
        source: ShardedSource,
        function: MapFunction[T],
        state: Any = None,
        rows: Mapping[str, RowArray] | None = None,
        shards: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, T]]:
        for (index,), value in self._streamed(source, map_shard, function, state, rows, shards):
            yield index, value

    def _streamed(
        self,
        source: ShardedSource,
        task: Callable[..., Any],
        function: Any,
        state: Any,
        rows: Mapping[str, RowArray] | None,
        shards: Sequence[int] | None = None,
        most: int = 0,
    ) -> Iterator[tuple[tuple[int, ...], Any]]:
        """What a task gives for runs of shards, in any order, each with its shards.

        Args:
            shards: those that are wanted (default: all).
            most: rows of a run of more than one shard.
        """
        wanted = set(range(source.n_shards) if shards is None else shards)
        if not wanted:
            return
        ready: queue.SimpleQueue[Future] = queue.SimpleQueue()
        flight: dict[str, _Task] = {}
        queues: list[_Queue] = []
        version, looked = -1, time.monotonic()
        self._settled()
        sent = self._sent(state)
        try:
            while wanted or flight:
                if time.monotonic() - looked > _POLL:
                    self._settled()
                    looked = time.monotonic()
                if version != self._version:
                    # Tasks of an earlier placement run on, beside the windows of the new one.
                    queues = self._queues(source, wanted, whole=shards is None)
                    version = self._version
                for chosen in _next(queues, self._window):
                    run = first_run(chosen.shards, source.bounds, most)
                    for index in run:
                        chosen.shards.popleft()
                        wanted.remove(index)
                    values = cut(rows, source.bounds(run[0])[0], source.bounds(run[-1])[1])
                    future = self._submit(
                        task,
                        chosen.held,
                        chosen.source,
                        run,
                        function,
                        sent,
                        values,
                        at=chosen.address,
                    )
                    chosen.busy += 1
                    flight[str(future.key)] = _Task(future, run, chosen)
                    future.add_done_callback(ready.put)
                try:
                    done = flight[str(ready.get(timeout=_POLL).key)]
                except queue.Empty:
                    self._offered()
                    continue
                value = self._fetched(done.future)
                _release(flight.pop(str(done.future.key)).future)
                done.queue.busy -= 1
                yield done.shards, value
                del value
        finally:
            _release(*(each.future for each in flight.values()), sent)

    def release(self, source: ShardedSource) -> None:
        """Forget the shards of a dataset that will not be asked for again."""
        held = self._datasets.pop(source.token, None)
        if held is not None:
            _release(*(future for future, _ in held.holdings.values()), held.sent)

    def hand_on(self, before: ShardedSource, after: Successor) -> None:
        """Forget the shards of one source; those of the other are loaded when they are asked for."""
        if before.token != after.token:
            self.release(before)

    def _placed(self, source: ShardedSource) -> list[_Part]:
        """The slots that have shards of a dataset, with futures of what they hold."""
        held = self._dataset(source)
        runs = self._runs(source)
        current = {(address, run) for address, run in runs if run}
        # First what is no longer wanted, so that its memory is free; and a failed load is tried again.
        for key, (future, _) in list(held.holdings.items()):
            if key not in current or future.status in ("error", "cancelled"):
                _release(held.holdings.pop(key)[0])
        room: int | None = None
        parts = []
        for address, run in runs:
            if run and (address, run) not in held.holdings:
                room = self._room(source.token) if room is None else room
                future = self._submit(hold, held.sent, run, room, at=address, priority=1)
                held.holdings[address, run] = future, room
            if run:
                parts.append(_Part(address, run, held.holdings[address, run][0], held.sent))
        return parts

    def _queues(self, source: ShardedSource, wanted: Collection[int], *, whole: bool) -> list[_Queue]:
        """The wanted shards by slot. Where not the whole is mapped, nothing is read but those."""
        if whole:
            parts = self._placed(source)
        else:
            held = self._dataset(source)
            parts = [
                _Part(address, run, held.holdings.get((address, run), (None, 0))[0], held.sent)
                for address, run in self._runs(source)
            ]
        return [
            _Queue(
                part.address,
                deque(index for index in part.shards if index in wanted),
                part.held,
                part.source,
            )
            for part in parts
        ]

    def _runs(self, source: ShardedSource) -> list[tuple[str, tuple[int, ...]]]:
        """Worker and shards of every slot, as of the last look at the workers."""
        slots = self._slots
        sizes = [stop - start for start, stop in map(source.bounds, range(source.n_shards))]
        return list(zip(slots, spread(sizes, len(slots)), strict=True))

    def _dataset(self, source: ShardedSource) -> _Held:
        held = self._datasets.get(source.token)
        if held is None:
            held = self._datasets[source.token] = _Held(source, self._submit(same, source))
        elif held.source is not source or held.sent.status in ("error", "cancelled"):
            # Tasks in flight keep what they were given.
            _release(held.sent)
            held.source, held.sent = source, self._submit(same, source)
        return held

    def _room(self, token: str) -> int:
        """Bytes that a slot may keep of a dataset, beside what other datasets keep."""
        others = [
            item
            for other, held in self._datasets.items()
            if other != token
            for item in held.holdings.values()
        ]
        used = 0
        if others:
            known = self._asked(lambda: self._client.nbytes([f.key for f, _ in others], summary=False))
            used = sum(min(room, known.get(future.key, room)) for future, room in others)
        # As it was planned for the most there were: fewer workers are no larger ones.
        return max(0, self._cache_bytes - used) // self._most_slots

    def _settled(self) -> list[str]:
        """The worker of every slot, after a look at which workers there are."""
        while not (threads := self._threads()):
            time.sleep(0.1)
        lost, new = set(self._slots) - set(threads), set(threads) - set(self._slots)
        if not lost:
            self._lost_since = None
        elif not new:
            self._lost_since = self._lost_since or time.monotonic()
            if time.monotonic() - self._lost_since < _GRACE:
                return self._slots
        slots = settle(self._slots, threads)
        if slots != self._slots:
            if unknown := set(threads) - self._known:
                self._asked(lambda: self._check and self._check(unknown))
                self._known |= unknown
            if self._slots:
                _logger.info("cluster: %d worker threads now, shards are spread over them", len(slots))
            self._slots, self._lost_since = slots, None
            self._most_slots = max(self._most_slots, len(slots))
            self._version += 1
        return self._slots

    def _threads(self) -> dict[str, int]:
        """Number of threads by worker; empty for a while where there is no worker."""
        threads: dict[str, int] = self._asked(self._client.nthreads)
        if threads:
            self._none_since = None
            return threads
        self._none_since = self._none_since or time.monotonic()
        if time.monotonic() - self._none_since > self._timeout:
            raise ClusterError(
                f"all workers of the cluster are gone, and none came within {self._timeout:g} s; see "
                "why they ended (memory, queue or time limit), start workers and run the audit again"
            )
        return threads

    def _steals(self) -> bool:
        try:
            return bool(
                self._client.run_on_scheduler(dask.config.get, "distributed.scheduler.work-stealing", True)
            )
        except Exception:
            return True

    def _sent(self, state: Any) -> Any:
        """A state as an argument of tasks: small ones go with each, others once, as a task that gives them.

        Scattered data would be lost with its worker; what a task gives is computed again.
        """
        buffers: list[pickle.PickleBuffer] = []
        content = cloudpickle.dumps(state, protocol=5, buffer_callback=buffers.append)
        if len(content) + sum(buffer.raw().nbytes for buffer in buffers) <= _INLINE_BYTES:
            return Packed(cloudpickle.dumps(state) if buffers else content)
        # Tied to no worker: what all others depend on should wait for none.
        return self._submit(same, state, priority=2)

    def _submit(
        self, function: Callable[..., Any], *args: Any, at: str | None = None, priority: int = 0
    ) -> Future:
        def submit() -> Future:
            # Large states are meant to be sent.
            with dask.config.set({"distributed.admin.large-graph-warning-threshold": 2**60}):
                return self._client.submit(
                    function,
                    *args,
                    key=f"{function.__name__}-{uuid.uuid4().hex}",
                    workers=None if at is None else [at],
                    allow_other_workers=at is not None,
                    priority=priority,
                )

        return self._asked(submit)

    def _fetched(self, future: Future, beside: Sequence[Future] = ()) -> Any:
        """The value of a future, waited for; also ends when one of those beside it has failed."""
        loop: Any = self._client.loop
        getting = asyncio.run_coroutine_threadsafe(_gather(self._client, future), loop.asyncio_loop)
        try:
            while True:
                try:
                    return getting.result(timeout=_POLL)
                except NotYet:
                    if getting.done():
                        raise
                self._threads()
                self._offered()
                for other in beside:
                    if other.status == "error":
                        raise told(other.exception()) from None
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, (InputError, RunError)):
                raise
            if future.status == "error":
                raise told(error) from None
            if self._disconnected(error):
                raise lost(error) from None
            raise
        finally:
            getting.cancel()

    def _offered(self) -> None:
        """What waits for a worker that does not run is offered to the others."""
        self._asked(lambda: self._client.run_on_scheduler(offer_to_others))

    def _asked(self, question: Callable[[], T]) -> T:
        try:
            return question()
        except (InputError, RunError):
            raise
        except (Exception, asyncio.CancelledError) as error:
            if self._disconnected(error):
                raise lost(error) from None
            raise

    def _disconnected(self, error: BaseException) -> bool:
        """Whether an error is the scheduler's absence, and not, say, a function that cannot be sent."""
        lost = (OSError, CancelledError, asyncio.CancelledError, ClosedClientError)
        return isinstance(error, lost) or self._client.status != "running"


async def _gather(client: Client, future: Future) -> Any:
    return (await client.gather([future], asynchronous=True))[0]


def _next(queues: Sequence[_Queue], window: int) -> Iterator[_Queue]:
    """The queues that may submit a task, in turns, until every window is full."""
    for _ in range(window):
        for each in queues:
            if each.shards and each.busy < window:
                yield each


def _release(*futures: Any) -> None:
    for future in futures:
        if isinstance(future, Future):
            future.release()
