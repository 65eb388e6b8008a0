"""Evaluation: a pool whose workers are killed, hang and break, latencies on a made-up clock, and nothing done twice."""

import functools
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from evonas.archive import Archive
from evonas.engines import EngineConfig, LocalEngine, Make, RayEngine, build_engine, connect
from evonas.evaluation import Evaluator, latency, one_core
from evonas.search import SearchConfig, search
from evonas.space import Genome, Space, SpaceConfig
from evos.errors import InputError

GENOMES = [(a, b, c) for a in range(3) for b in range(2) for c in range(2)]
POOL = {"engine": "ray", "workers": 2, "models": 3}
ONE = {"engine": "ray", "workers": 1, "models": 3}


def make_toy(
    log: Path, seconds: float = 0.0, *, evil: Genome | str | None = None, does: str = "nothing", once: bool = True
) -> Make:
    """A maker of evaluators, which log their process and genomes; at ``evil``, a genome or the start, they die, hang or
    raise, once or each time."""
    flag, path = str(log) + ".done", str(log)

    def trouble() -> None:
        import os
        import signal
        import time

        from evos.errors import InputError

        if once and os.path.exists(flag):
            return
        with open(flag, "w"):
            pass
        if does == "hang":
            time.sleep(600)
        if does == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise InputError("data.root", "nowhere", "a folder")

    def make():
        if evil == "start":
            trouble()

        def evaluate(genomes):
            import os
            import time

            import torch

            errors = []
            for genome in genomes:
                with open(path, "a") as file:
                    file.write(f"{os.getpid()} {' '.join(map(str, genome))}\n")
                time.sleep(seconds)
                if genome == evil:
                    trouble()
                generator = torch.Generator().manual_seed(sum(9**i * gene for i, gene in enumerate(genome)))
                errors.append(float(torch.rand((), generator=generator, dtype=torch.float64)))
            return errors

        return evaluate

    return make


def lines(log: Path) -> list[tuple[int, Genome]]:
    """Which process evaluated which genome."""
    rows = [list(map(int, line.split())) for line in log.read_text().splitlines()]
    return [(pid, tuple(genome)) for pid, *genome in rows]


@pytest.fixture
def truth(tmp_path) -> dict[Genome, float]:
    """What every engine must find."""
    with LocalEngine(make_toy(tmp_path / "truth"), EngineConfig()) as engine:
        return dict(engine.evaluate(GENOMES))


# ---- in this process


def test_the_local_engine_gives_groups_to_the_evaluator_and_leaves_torch_as_it_was():
    groups, threads = [], torch.get_num_threads()

    def make():
        def evaluate(genomes):
            groups.append((list(genomes), torch.get_num_threads()))
            return [sum(genome) for genome in genomes]

        return evaluate

    with build_engine(EngineConfig(models=5, threads=threads + 1), make) as engine:
        assert list(engine.evaluate(GENOMES)) == [(genome, sum(genome)) for genome in GENOMES]
    assert groups == [(GENOMES[start : start + 5], threads + 1) for start in (0, 5, 10)]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    "option, value",
    [
        ("engine", "slurm"),
        ("workers", 0),
        ("models", 0),
        ("threads", 0),
        ("time_limit", 0.0),
        ("retries", -1),
        ("gpus_per_worker", -0.5),
    ],
)
def test_wrong_options_are_refused(option, value):
    with pytest.raises(InputError, match=option):
        EngineConfig(**asdict(EngineConfig()) | {option: value})


# ---- a pool


@pytest.fixture(scope="module")
def ray_runs() -> Iterator[None]:
    """One Ray for all; each engine's workers are its own."""
    pytest.importorskip("ray")
    handler = signal.getsignal(signal.SIGTERM)
    with RayEngine(lambda: lambda genomes: [], EngineConfig(engine="ray", workers=2)):
        assert signal.getsignal(signal.SIGTERM) is handler
        yield


def pool(test: Callable) -> Callable:
    """A test with processes of Ray's."""
    return pytest.mark.slow(pytest.mark.dist(pytest.mark.usefixtures("ray_runs")(test)))


@pool
def test_a_pool_finds_the_same_in_several_processes_even_after_one_was_left_early(truth, tmp_path):
    log = tmp_path / "log"
    with build_engine(EngineConfig(**POOL), make_toy(log, 0.1)) as engine:
        assert dict(engine.evaluate(GENOMES)) == truth
        log.write_text("")  # on a busy machine one worker was done before the other had started; now both are there
        assert dict(engine.evaluate(GENOMES)) == truth
        first = lines(log)
        assert len({pid for pid, _ in first}) == 2 and sorted(genome for _, genome in first) == sorted(GENOMES)
        assert list(engine.evaluate([])) == []
        assert dict(engine.evaluate(GENOMES[:2])) == {genome: truth[genome] for genome in GENOMES[:2]}
        assert {pid for pid, _ in lines(log)} == {pid for pid, _ in first}  # the same workers
        results = engine.evaluate(GENOMES)
        genome, error = next(results)
        results.close()
        assert truth[genome] == error
        assert dict(engine.evaluate(GENOMES)) == truth


@pool
@pytest.mark.parametrize("does", ["die", "hang"])
def test_a_worker_that_dies_or_hangs_is_replaced_with_the_same_results(truth, tmp_path, does):
    log = tmp_path / "log"
    config = EngineConfig(**ONE, time_limit=600 if does == "die" else 40, retries=9)
    with RayEngine(make_toy(log, evil=GENOMES[4], does=does), config) as engine:
        found = list(engine.evaluate(GENOMES))
    assert dict(found) == truth and len(found) == len(GENOMES)
    assert len({pid for pid, _ in lines(log)}) >= 2
    assert [genome for _, genome in lines(log)].count(GENOMES[4]) == 2


@pool
def test_a_worker_killed_from_outside_is_replaced_with_the_same_results(truth, tmp_path):
    log = tmp_path / "log"

    def kill() -> None:
        while not log.exists() or not log.read_text():
            time.sleep(0.05)
        os.kill(lines(log)[0][0], signal.SIGKILL)

    with RayEngine(make_toy(log, 0.2), EngineConfig(**ONE)) as engine:
        killer = threading.Thread(target=kill)
        killer.start()
        assert dict(engine.evaluate(GENOMES)) == truth
        killer.join()
    assert len({pid for pid, _ in lines(log)}) == 2


@pool
def test_a_network_that_kills_each_worker_is_named_and_takes_no_other_with_it(truth, tmp_path):
    evil, found = GENOMES[4], {}
    make = make_toy(tmp_path / "log", evil=evil, does="die", once=False)
    with (
        RayEngine(make, EngineConfig(**ONE, retries=1)) as engine,
        pytest.raises(RuntimeError, match=r"genome \[1, 0, 0\]: its worker died, 2 times"),
    ):
        for genome, error in engine.evaluate(GENOMES):
            found[genome] = error
    assert found == {genome: truth[genome] for genome in GENOMES[:4]}


@pool
def test_what_an_evaluation_raises_comes_as_it_is(truth, tmp_path):
    with RayEngine(make_toy(tmp_path / "log", evil=GENOMES[0], does="raise"), EngineConfig(**ONE)) as engine:
        with pytest.raises(InputError, match=r"data\.root: got nowhere; allowed: a folder"):
            list(engine.evaluate(GENOMES[:2]))
        assert dict(engine.evaluate(GENOMES[:2])) == {genome: truth[genome] for genome in GENOMES[:2]}


@pool
def test_a_pool_that_does_not_start_says_so(tmp_path):
    make = make_toy(tmp_path / "log", evil="start", does="die", once=False)
    with (
        RayEngine(make, EngineConfig(**ONE, retries=1)) as engine,
        pytest.raises(RuntimeError, match="the pool doesn't start: the last of 2 workers died"),
    ):
        list(engine.evaluate(GENOMES))


@pool
def test_more_workers_than_there_is_room_for_are_refused(tmp_path):
    make = make_toy(tmp_path / "log")
    with pytest.raises(InputError, match=r"engine.workers: got 2; .*2 CPU each, and Ray has 2"):
        RayEngine(make, EngineConfig(**POOL, threads=2)).__enter__()
    with pytest.raises(InputError, match=r"engine.workers: got 2; .*0.5 GPU each, and Ray has"):
        RayEngine(make, EngineConfig(**POOL, gpus_per_worker=0.5)).__enter__()


@pool
def test_a_search_by_a_pool_ends_as_one_without(tmp_path):
    space = Space(SpaceConfig(depths="[1, 2]", heads="[2, 2]", width=8))
    config, found = SearchConfig(population=6, generations=3, objectives="[error, macs]"), []
    for name in ("local", "ray"):
        folder = tmp_path / name
        with build_engine(EngineConfig(engine=name, workers=1, models=2), make_toy(tmp_path / "log", 0.01)) as engine:
            evaluate = Evaluator(engine, {"macs": lambda genome: float(sum(genome))}, folder)
            found.append(search(space, config, evaluate, folder))
    assert found[0] == found[1]


def test_an_address_where_nobody_answers_is_refused_at_once():
    pytest.importorskip("ray")
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))  # taken, so that nobody else listens there
        address = f"127.0.0.1:{own.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(InputError, match=f"engine.address: got {address} .*refused.*; allowed: auto or HOST:PORT"):
            connect(EngineConfig(engine="ray", address=address))
        assert time.monotonic() - began < 10
    for wrong in ("nowhere", "127.0.0.1:99999", ""):
        with pytest.raises(InputError, match=r"engine\.address"):
            connect(EngineConfig(engine="ray", address=wrong))


def test_a_ray_that_does_not_start_is_one_line(monkeypatch):
    ray = pytest.importorskip("ray")

    def init(*words, **options):
        raise Exception("The current node timed out during startup.\nAnd more.")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(InputError, match=r"engine.engine: got ray, which does not start \(The current node"):
        connect(EngineConfig(engine="ray"))


# ---- latency


class Clock:
    """A clock on which the calls of ``run`` take these seconds, one after the other."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds, self.now, self.calls = iter(seconds), 100.0, 0

    def __call__(self) -> float:
        return self.now

    def run(self) -> None:
        self.calls += 1
        self.now += next(self.seconds)


def test_latency_is_the_median_of_calls_after_the_warm_up():
    clock = Clock([50.0, 70.0, 1.0, 2.0, 6.0, 3.0])
    found = latency(clock.run, warmup=2, repeats=4, clock=clock)
    assert clock.calls == 6
    assert found["median"] == pytest.approx(2.5)
    assert found["cv"] == pytest.approx(3.5**0.5 / 3)  # of 1, 2, 6, 3: mean 3, variance 14/4


def test_latency_is_about_what_a_call_takes():
    assert 0.02 <= latency(functools.partial(time.sleep, 0.02), warmup=1, repeats=5)["median"] < 0.1


def test_latency_is_measured_on_one_core_and_all_is_as_before_afterwards():
    seen, threads = [], torch.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None

    def run() -> None:
        seen.append((torch.get_num_threads(), os.sched_getaffinity(0) if cores else None))

    torch.set_num_threads(2)
    try:
        latency(run, warmup=1, repeats=1)
        assert seen == [(1, cores and {max(cores)})] * 2
        if cores:
            latency(run, warmup=0, repeats=1, core=min(cores))
            assert seen[-1] == (1, {min(cores)})
            with pytest.raises(InputError, match="core: got 4096"):
                latency(run, core=4096)
        with pytest.raises(ZeroDivisionError), one_core():
            _ = 1 / 0
        assert torch.get_num_threads() == 2
        assert cores is None or os.sched_getaffinity(0) == cores
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(InputError, match="repeats"):
        latency(run, repeats=0)


# ---- all objectives


class Recorder:
    """An engine and objectives that write down what they were asked, in one list."""

    def __init__(self, breaks_at: int | None = None) -> None:
        self.calls: list[tuple[str, Genome]] = []
        self.breaks_at = breaks_at

    def make(self):
        def evaluate(genomes):
            return [self.note("error", genome) / 10 for genome in genomes]

        return evaluate

    def note(self, what: str, genome: Genome) -> float:
        if len(self.calls) == self.breaks_at:
            raise KeyboardInterrupt
        self.calls.append((what, genome))
        return 1.0 + sum(genome)

    def objectives(self) -> dict[str, Callable[[Genome], float]]:
        return {name: functools.partial(self.note, name) for name in ("latency", "macs")}

    def evaluator(self, folder: Path):
        engine = LocalEngine(self.make, EngineConfig(models=1))
        engine.__enter__()
        return Evaluator(engine, self.objectives(), folder)


def test_all_errors_come_before_the_first_latency(tmp_path):
    own = Recorder()
    found = list(own.evaluator(tmp_path)(GENOMES))
    count = len(GENOMES)
    assert [what for what, _ in own.calls] == ["error"] * count + ["latency", "macs"] * count
    assert found[:count] == [(genome, {"error": (1 + sum(genome)) / 10}) for genome in GENOMES]
    whole = [{"error": (1 + sum(g)) / 10, "latency": 1.0 + sum(g), "macs": 1.0 + sum(g)} for g in GENOMES]
    assert found[count:] == list(zip(GENOMES, whole, strict=True))


@pytest.mark.parametrize("breaks_at", [0, 1, 7, 12, 13, 20, 35, 36])
def test_no_error_is_evaluated_twice_whenever_it_was_killed(tmp_path, breaks_at):
    own, space = Recorder(breaks_at), Space(SpaceConfig(depths="[1, 2]", heads="[2, 2]", width=8))
    config = SearchConfig(population=12, generations=2)
    if breaks_at < 36:
        with pytest.raises(KeyboardInterrupt):
            search(space, config, own.evaluator(tmp_path), tmp_path)
    before, own.breaks_at = len(own.calls), None
    again = search(space, config, own.evaluator(tmp_path), tmp_path)
    whole = Recorder()
    assert again == search(space, config, whole.evaluator(tmp_path / "whole"), tmp_path / "whole")
    errors = [genome for what, genome in own.calls if what == "error"]
    assert len(errors) == len(set(errors)) == 24
    latencies = [genome for what, genome in own.calls if what == "latency"]
    assert len(latencies) - len(set(latencies)) <= (12 <= before < 36)  # at most the one under way
    assert {tuple(g) for g in Archive(tmp_path / "errors.jsonl").values} == set(errors)


def test_an_archive_reads_back_what_was_added_and_drops_a_torn_line(tmp_path):
    path = tmp_path / "archive.jsonl"
    archive = Archive(path)
    archive.add((0, 1), {"error": 1 / 3})
    archive.add((1, 1), {"error": 2e-17, "macs": 3})
    text = path.read_bytes()
    assert Archive(path).values == {(0, 1): {"error": 1 / 3}, (1, 1): {"error": 2e-17, "macs": 3.0}}
    for cut in range(len(text) - 1, 0, -1):
        path.write_bytes(text[:cut])
        kept = text[:cut].count(b"\n")
        assert len(Archive(path).values) == max(kept - 1, 0)
        assert path.read_bytes() == (b"".join(text.splitlines(keepends=True)[: max(kept, 1)]))
    with pytest.raises(InputError, match="archive"):
        Archive(tmp_path / "none" / "archive.jsonl")
    with pytest.raises(InputError, match="archive"):
        Archive(tmp_path)
