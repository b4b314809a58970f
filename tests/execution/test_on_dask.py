"""The Dask executor on real processes against the one in process; workers that die, come and go."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from influence_batch.config import ClusterAddress, LocalCluster
from influence_batch.errors import InputError, MissingFileError, RunError
from influence_batch.execution import InProcessExecutor, Reduction, in_order, on_dask, open_executor
from influence_batch.execution.on_dask import DaskExecutor
from influence_batch.execution.placement import first_run, settle, spread
from influence_batch.execution.reduction import sum_over_shards
from tests.execution import workers
from tests.execution.processes import cluster, wait_until
from tests.execution.workers import NotedSource

N = 103
EDGES = {
    "one": (0, N),
    "tens": (*range(0, N, 10), N),
    "uneven": (0, 1, 2, 60, 61, 90, N),
}


@pytest.fixture(scope="module", params=[1, 3])
def client(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Of a local cluster with that many workers; two are in the tests that lose one."""
    with open_executor(LocalCluster(workers=request.param), 0) as executor:
        yield executor._client


@pytest.fixture(scope="module")
def two() -> Iterator[Any]:
    """The client of a local cluster with two workers, which tests kill."""
    with open_executor(LocalCluster(workers=2), 0) as executor:
        yield executor._client


@pytest.fixture
def notes(tmp_path: Path) -> str:
    return str(tmp_path / "loads")


def worker_processes(client: Any) -> dict[str, int]:
    return client.run(os.getpid)


def kill_after_loads(source: NotedSource, loads: int) -> tuple[threading.Thread, list[int]]:
    """Kill the process that loads a shard next, once some more loads were noted."""
    before = len(source.loads())
    killed: list[int] = []

    def watch() -> None:
        wait_until(lambda: len(source.loads()) >= before + loads)
        killed.append(source.loads()[-1][1])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread, killed


def data(client: Any) -> set[str]:
    """Keys of what the cluster has in memory. Errors of earlier tests may keep some of theirs."""
    return set(client.nbytes(summary=False))


def settled(client: Any, workers: int) -> None:
    """Wait for what a nanny starts again, or the cluster does where a nanny has given up."""

    def there() -> bool:
        client.cluster.scale(workers)  # changes nothing while as many nannies are there
        nannies = list(client.cluster.workers.values())
        # One that the cluster has given up, or adds in its place, may still come or go.
        return len(nannies) == workers and {each.worker_address for each in nannies} == set(client.nthreads())

    wait_until(there)


class TestPlacement:
    @pytest.mark.parametrize(
        ("slots", "threads", "expected"),
        [
            ([], {"b": 1, "a": 2}, ["a", "a", "b"]),
            (["a", "b"], {"a": 1, "b": 1}, ["a", "b"]),
            (["a", "b", "c"], {"a": 1, "d": 1, "c": 1}, ["a", "d", "c"]),
            (["a", "b", "c"], {"a": 1, "c": 1}, ["a", "c"]),
            (["a", "b"], {"a": 1, "b": 1, "c": 2}, ["a", "b", "c", "c"]),
            (["a", "a", "b"], {"a": 1, "b": 2}, ["a", "b", "b"]),
        ],
    )
    def test_slots_keep_their_position(
        self, slots: list[str], threads: dict[str, int], expected: list[str]
    ) -> None:
        assert settle(slots, threads) == expected

    @pytest.mark.parametrize("n_slots", [1, 2, 3, 7, 20])
    @pytest.mark.parametrize("sizes", [[], [5], [3] * 14, [1, 1, 100], [100, 1, 1], [2, 9, 4, 1, 7, 7, 3]])
    def test_runs_are_neighbours_and_balanced(self, sizes: list[int], n_slots: int) -> None:
        runs = spread(sizes, n_slots)
        assert len(runs) == n_slots
        assert list(chain.from_iterable(runs)) == list(range(len(sizes)))
        share = sum(sizes) / n_slots + max(sizes, default=0)
        assert all(sum(sizes[i] for i in run) <= share for run in runs)

    @pytest.mark.parametrize(
        ("shards", "most", "expected"),
        [
            ([0, 1, 2, 3], 0, (0,)),
            ([0, 1, 2, 3], 25, (0, 1)),
            ([0, 1, 2, 3], 1000, (0, 1, 2, 3)),
            ([1, 2, 5], 1000, (1, 2)),
            ([3], 1000, (3,)),
        ],
    )
    def test_a_run_has_no_gaps_and_not_too_many_rows(
        self, shards: list[int], most: int, expected: tuple[int, ...]
    ) -> None:
        assert first_run(shards, lambda index: (10 * index, 10 * index + 10), most) == expected

    def test_as_many_shards_as_slots(self) -> None:
        assert spread([4, 4, 4], 3) == [(0,), (1,), (2,)]


class TestSameAsInProcess:
    @pytest.mark.parametrize("kept", [0, 3, 1000])
    @pytest.mark.parametrize("edges", EDGES)
    def test_sums_and_order(self, client: Any, notes: str, edges: str, kept: int) -> None:
        source = NotedSource(notes, EDGES[edges])
        executor = DaskExecutor(client, kept * source.shard_bytes())
        state, rows = np.eye(3), {"w": np.linspace(0.5, 2.0, N)}
        reduction = sum_over_shards(workers.weighted_products)
        expected = InProcessExecutor(0).reduce(source, reduction, state, rows)
        for _ in range(2):
            result = executor.reduce(source, reduction, state, rows)
            np.testing.assert_allclose(result[0], expected[0], rtol=1e-13, atol=1e-13)
            assert result[1] == expected[1]
        assert executor.reduce(source, Reduction(workers.first_and_last, workers.join, workers.empty)) == (
            0,
            N,
        )
        parts = in_order(executor.map(source, workers.weighted_products, state, rows))
        np.testing.assert_allclose(sum(part[0] for part in parts), expected[0], rtol=1e-13, atol=1e-13)
        executor.release(source)

    @pytest.mark.parametrize("most", [1, 400, 700])
    def test_more_values_than_go_at_a_time(
        self, client: Any, notes: str, monkeypatch: pytest.MonkeyPatch, most: int
    ) -> None:
        monkeypatch.setattr(on_dask, "_MOST_ROWS", most)
        source, rows = NotedSource(notes, EDGES["tens"]), {"w": np.linspace(0.5, 2.0, N)}
        reduction = sum_over_shards(workers.weighted_products)
        expected = InProcessExecutor(0).reduce(source, reduction, np.eye(3), rows)
        executor = DaskExecutor(client, 3 * source.shard_bytes())
        result = executor.reduce(source, reduction, np.eye(3), rows)
        np.testing.assert_allclose(result[0], expected[0], rtol=1e-13, atol=1e-13)
        assert result[1] == expected[1]
        executor.release(source)

    def test_a_large_state(self, client: Any, notes: str) -> None:
        source = NotedSource(notes, EDGES["tens"])
        state = np.random.default_rng(0).standard_normal((500, 200))
        result = DaskExecutor(client, 0).reduce(source, sum_over_shards(workers.echo), state)
        np.testing.assert_allclose(result, source.n_shards * state, rtol=1e-13)

    def test_no_shards(self, client: Any, notes: str) -> None:
        source = NotedSource(notes, (0,))
        executor = DaskExecutor(client, 0)
        assert executor.reduce(source, Reduction(workers.row_numbers, workers.join, list)) == []
        assert list(executor.map(source, workers.row_numbers)) == []

    def test_some_shards(self, client: Any, notes: str) -> None:
        source = NotedSource(notes, EDGES["tens"])
        values = dict(DaskExecutor(client, 10**6).map(source, workers.row_numbers, shards=[7, 2]))
        assert values == {7: list(range(70, 80)), 2: list(range(20, 30))}
        assert sorted(shard for shard, _ in source.loads()) == [2, 7]

    def test_a_map_inside_a_map(self, client: Any, notes: str) -> None:
        one, other = NotedSource(notes, EDGES["tens"]), NotedSource(notes, EDGES["uneven"])
        executor = DaskExecutor(client, 10**6)
        seen = []
        for index, _ in executor.map(one, workers.row_numbers):
            assert executor.reduce(other, sum_over_shards(workers.row_numbers)) == list(range(N))
            seen.append(index)
        assert sorted(seen) == list(range(one.n_shards))


class TestMemory:
    def test_each_worker_keeps_its_share(self, client: Any, notes: str) -> None:
        source = NotedSource(notes, tuple(range(0, 121, 10)))
        slots, before_all = len(client.nthreads()), data(client)
        kept_each = 2
        cache = slots * kept_each * source.shard_bytes() + 5
        executor = DaskExecutor(client, cache)
        assert executor.slots == slots
        reduction = sum_over_shards(workers.row_numbers)
        executor.reduce(source, reduction)
        before = len(source.loads())
        executor.reduce(source, reduction)
        # The others are on its disk.
        assert len(source.loads()) == before == 12
        sizes = client.nbytes(summary=False)
        held = sum(size for key, size in sizes.items() if str(key).startswith("hold-"))
        assert slots * kept_each * source.shard_bytes() <= held <= cache + 1000 * slots
        executor.release(source)
        wait_until(lambda: data(client) <= before_all)

    def test_datasets_share_the_cache(self, client: Any, notes: str) -> None:
        one = NotedSource(notes, tuple(range(0, 121, 10)))
        other = NotedSource(notes + "2", tuple(range(0, 121, 10)))
        executor = DaskExecutor(client, 12 * one.shard_bytes())
        reduction = sum_over_shards(workers.row_numbers)
        for _ in range(2):
            executor.reduce(one, reduction)
            executor.reduce(other, reduction)
        assert (len(one.loads()), len(other.loads())) == (12, 12)
        sizes = client.nbytes(summary=False)
        held = sum(size for key, size in sizes.items() if str(key).startswith("hold-"))
        assert held <= 12 * one.shard_bytes() + 1000 * executor.slots
        executor.release(one)
        executor.release(other)

    def test_nothing_stays_of_a_map_that_is_left(self, client: Any, notes: str) -> None:
        source, before = NotedSource(notes, EDGES["tens"]), data(client)
        executor = DaskExecutor(client, 0)
        parts = executor.map(source, workers.slow_row_numbers, 0.1)
        next(parts)
        parts.close()
        executor.release(source)
        wait_until(lambda: data(client) <= before and not any(client.processing().values()))
        assert len(source.loads()) < source.n_shards


class TestErrors:
    def test_of_the_map_function_come_through(self, two: Any, notes: str) -> None:
        source = NotedSource(notes, EDGES["tens"])
        executor = DaskExecutor(two, 0)
        reduction = sum_over_shards(workers.refuse)
        for error in (ValueError("seven"), InputError("train.label: no"), RunError("no optimum")):
            with pytest.raises(type(error), match=f"^{error}$"):
                executor.reduce(source, reduction, error)
            with pytest.raises(type(error), match=f"^{error}$"):
                list(executor.map(source, workers.refuse, error))
        assert executor.reduce(source, sum_over_shards(workers.row_numbers)) == list(range(N))

    def test_a_missing_file_names_the_worker(self, two: Any, notes: str) -> None:
        source = workers.MissingSource(notes, EDGES["tens"])
        message = (
            r"^train.path: /data/a.parquet does not exist; expected a Parquet file \(on the worker "
            r"tcp://127.0.0.1:\d+; every worker must see the files under the same path\)$"
        )
        for cache in (0, 10**6):
            with pytest.raises(MissingFileError, match=message):
                DaskExecutor(two, cache).reduce(source, sum_over_shards(workers.row_numbers))

    def test_a_failed_load_is_tried_again_by_the_next_pass(self, two: Any, notes: str) -> None:
        source = workers.FlakySource(notes, (0, 10))
        executor = DaskExecutor(two, 10**6)
        with pytest.raises(OSError, match="Input/output"):
            executor.reduce(source, sum_over_shards(workers.row_numbers))
        assert executor.reduce(source, sum_over_shards(workers.row_numbers)) == list(range(10))

    def test_memory_that_cannot_be_had(self, two: Any, notes: str) -> None:
        message = (
            r"^memory ran out on the worker tcp://127.0.0.1:\d+ \(Unable to allocate 8.0 TiB\); lower "
            "memory_limit or shard_rows, or give each worker more "
            "memory$"
        )
        with pytest.raises(RunError, match=message):
            DaskExecutor(two, 0).reduce(
                NotedSource(notes, EDGES["tens"]), sum_over_shards(workers.run_out_of_memory)
            )

    def test_what_cannot_be_sent(self, two: Any, notes: str) -> None:
        function = functools.partial(workers.row_numbers, lock=threading.Lock())
        for state, given in ((threading.Lock(), workers.row_numbers), (None, function)):
            with pytest.raises(TypeError, match=r"pickle|serialize"):
                DaskExecutor(two, 0).reduce(NotedSource(notes, (0, 10)), sum_over_shards(given), state)

    def test_a_task_that_kills_its_workers(self, two: Any, notes: str) -> None:
        message = (
            r"^4 workers died in a row at the same task \(one shard\), the last one tcp://127.0.0.1:\d+: "
            "most likely their memory ran out; lower memory_limit or shard_rows, or give each worker more "
            "memory$"
        )
        with pytest.raises(RunError, match=message):
            list(DaskExecutor(two, 0).map(NotedSource(notes, (0, 10)), workers.kill_the_worker))
        settled(two, 2)


class TestLostWorkers:
    @pytest.mark.parametrize("kept", [0, 1000])
    def test_in_the_middle_of_a_reduction(self, two: Any, notes: str, kept: int) -> None:
        source = NotedSource(notes, EDGES["tens"], seconds=0.05)
        executor = DaskExecutor(two, kept * source.shard_bytes())
        state, rows = np.eye(3), {"w": np.linspace(0.5, 2.0, N)}
        reduction = sum_over_shards(workers.weighted_products)
        expected = InProcessExecutor(0).reduce(NotedSource(os.devnull, source.edges), reduction, state, rows)
        thread, killed = kill_after_loads(source, 3)
        result = executor.reduce(source, reduction, state, rows)
        thread.join()
        np.testing.assert_allclose(result[0], expected[0], rtol=1e-13, atol=1e-13)
        assert result[1] == expected[1]
        assert len(source.loads()) > source.n_shards
        settled(two, 2)
        assert killed[0] not in worker_processes(two).values()
        executor.reduce(source, reduction, state, rows)
        # What was lost is with the worker that came in its place; the other's shards have not moved.
        before = len(source.loads())
        executor.reduce(source, reduction, state, rows)
        assert len(source.loads()) == before
        executor.release(source)

    def test_shards_kept_by_a_lost_worker_are_read_again(self, two: Any, notes: str) -> None:
        source = NotedSource(notes, EDGES["tens"])
        executor = DaskExecutor(two, 10**6)
        reduction = sum_over_shards(workers.row_numbers)
        executor.reduce(source, reduction)
        lost = source.loads()[0][1]
        shards = [shard for shard, process in source.loads() if process == lost]
        os.kill(lost, signal.SIGKILL)
        assert executor.reduce(source, reduction) == list(range(N))
        settled(two, 2)
        assert executor.reduce(source, reduction) == list(range(N))
        again = source.loads()[source.n_shards :]
        assert {shard for shard, _ in again} == set(shards)
        executor.release(source)

    @pytest.mark.parametrize("kept", [0, 1000])
    def test_in_the_middle_of_a_map(self, two: Any, notes: str, kept: int) -> None:
        source = NotedSource(notes, EDGES["tens"])
        executor = DaskExecutor(two, kept * source.shard_bytes())
        parts = executor.map(source, workers.slow_row_numbers, 0.1)
        values = [next(parts), next(parts)]
        os.kill(source.loads()[-1][1], signal.SIGKILL)
        values.extend(parts)
        assert list(chain.from_iterable(in_order(iter(values)))) == list(range(N))
        assert sorted(index for index, _ in values) == list(range(source.n_shards))
        settled(two, 2)
        executor.release(source)


def test_a_worker_that_joins_gets_shards(two: Any, notes: str) -> None:
    source = NotedSource(notes, tuple(range(0, 401, 10)))
    executor = DaskExecutor(two, 0)
    before = set(worker_processes(two).values())
    parts = executor.map(source, workers.slow_row_numbers, 0.15)
    try:
        values = [next(parts)]
        two.cluster.scale(3)
        wait_until(lambda: len(two.nthreads()) == 3)
        values.extend(parts)
        assert list(chain.from_iterable(in_order(iter(values)))) == list(range(400))
        assert executor.slots == 3
        new = set(worker_processes(two).values()) - before
        assert len(new) == 1
        assert new & {process for _, process in source.loads()}
        by_process = [process for _, process in executor.map(source, workers.processes)]
        assert sorted(map(by_process.count, set(by_process))) == [13, 13, 14]
    finally:
        two.cluster.scale(2)
        settled(two, 2)


def test_partial_results_of_many_slots_are_combined_on_workers(
    two: Any, notes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty slots, of workers with many threads as far as the executor knows."""
    source, before = NotedSource(notes, tuple(range(0, 201, 10))), data(two)
    executor = DaskExecutor(two, 0)
    threads = executor._threads
    monkeypatch.setattr(executor, "_threads", lambda: dict.fromkeys(threads(), 10))
    assert executor.slots == 20
    reduction = Reduction(workers.first_and_last, workers.join, workers.empty)
    assert executor.reduce(source, reduction) == (0, 200)
    executor.release(source)
    wait_until(lambda: data(two) <= before)


def test_what_prefers_a_lost_worker_goes_to_one_that_had_paused(two: Any, notes: str) -> None:
    """Dask keeps a task for the worker it prefers where none runs at the time, and would for ever."""
    source = NotedSource(notes, EDGES["tens"])
    executor = DaskExecutor(two, 10**6)
    executor.reduce(source, sum_over_shards(workers.row_numbers))
    lost, other = sorted(two.nthreads())
    waited: list[int] = []

    def lose_one_while_the_other_pauses() -> None:
        wait_until(lambda: any(two.processing().values()))
        two.run(workers.set_status, "paused", workers=[other])
        os.kill(worker_processes(two)[lost], signal.SIGKILL)
        wait_until(lambda: lost not in two.nthreads())
        waited.append(two.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.unrunnable)))
        two.run(workers.set_status, "running", workers=[other])

    thread = threading.Thread(target=lose_one_while_the_other_pauses)
    thread.start()
    slow = sum_over_shards(workers.slow_row_numbers)
    assert executor.reduce(source, slow, 0.2) == list(range(N))
    values = in_order(executor.map(source, workers.row_numbers))
    assert list(chain.from_iterable(values)) == list(range(N))
    thread.join()
    assert waited[0] > 0
    executor.release(source)
    settled(two, 2)


class TestASchedulerOfItsOwn:
    def test_from_the_first_reduction_to_the_last_worker(
        self, tmp_path: Path, notes: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = NotedSource(notes, EDGES["tens"])
        reduction = sum_over_shards(workers.weighted_products)
        numbers = sum_over_shards(workers.row_numbers)
        state, rows = np.eye(3), {"w": np.linspace(0.5, 2.0, N)}
        with cluster(tmp_path) as running:
            config = ClusterAddress(address=running.address, timeout=20.0)
            with open_executor(config, 3 * source.shard_bytes()) as executor:
                executor._timeout = 1.0
                wait_until(lambda: executor.slots == 2)
                # This scheduler lets idle workers steal tasks that wait.
                assert executor._window == 1
                expected = InProcessExecutor(0).reduce(source, reduction, state, rows)
                result = executor.reduce(source, reduction, state, rows)
                np.testing.assert_allclose(result[0], expected[0], rtol=1e-13, atol=1e-13)
                values = in_order(executor.map(source, workers.row_numbers))
                assert list(chain.from_iterable(values)) == list(range(N))
                # Nobody starts these again.
                parts = executor.map(source, workers.slow_row_numbers, 0.1)
                next(parts)
                running.workers[0].kill()
                assert len(list(parts)) == source.n_shards - 1
                monkeypatch.setattr(on_dask, "_GRACE", 0.0)
                assert executor.slots == 1
                assert executor.reduce(source, numbers) == list(range(N))
                parts = executor.map(source, workers.slow_row_numbers, 0.1)
                next(parts)
                running.workers[1].kill()
                with pytest.raises(RunError, match=r"^all workers of the cluster are gone, and none came"):
                    list(parts)
                with pytest.raises(RunError, match=r"start workers and run the audit again$"):
                    executor.reduce(source, reduction, state, rows)

    def test_a_scheduler_that_dies(self, tmp_path: Path, notes: str) -> None:
        source = NotedSource(notes, EDGES["tens"])
        with cluster(tmp_path, workers=1) as running:
            config = ClusterAddress(address=running.address, timeout=20.0)
            with open_executor(config, 0) as executor:
                parts = executor.map(source, workers.slow_row_numbers, 0.1)
                next(parts)
                running.scheduler.kill()
                message = r"^the connection to the Dask scheduler was lost \(.*\); see whether"
                with pytest.raises(RunError, match=message):
                    list(parts)
