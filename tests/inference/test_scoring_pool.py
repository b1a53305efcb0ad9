"""Saving and scoring beside the alignment: how many processes, how much waits, who hears Ctrl-C, what consoles take."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from inference.scoring_pool import scored, scoring_pool
from utils.files import InputError
from utils.processes import available_cores, pool_size


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not tie processes to cores")
def test_cores_are_those_that_this_process_may_use():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    assert available_cores() == len(before)


def test_windows_pools_have_at_most_61_processes(monkeypatch):
    assert pool_size(100) == 100 or os.name == "nt"
    monkeypatch.setattr("utils.processes.os.name", "nt")
    assert (pool_size(100), pool_size(8)) == (61, 8)


def test_pairs_are_made_only_as_fast_as_they_are_scored(monkeypatch):
    begin, done, most = threading.Event(), [], 0

    def slow(job: int) -> dict[str, int]:
        begin.wait(10)
        done.append(job)
        return {"name": job}

    def jobs():
        nonlocal most
        for job in range(20):
            most = max(most, job - len(done))
            if job == 3:
                begin.set()  # as many as may wait have been made, and the next one may not be yet
            yield job

    monkeypatch.setattr("inference.scoring_pool.save_and_score", slow)
    with ThreadPoolExecutor(1) as pool:
        rows = list(scored(jobs(), pool, 4))
    assert sorted(row["name"] for row in rows) == list(range(20))
    # One is in the making beside the four that wait.
    assert 3 <= most <= 4


def test_scoring_processes_leave_ctrl_c_to_their_parent():
    with scoring_pool(2) as pool:
        for _ in range(4):
            worker = pool.submit(os.getpid).result(timeout=60)
            assert pool.submit(os.kill, worker, signal.SIGINT).result(timeout=60) is None
        assert pool.submit(len, "abc").result(timeout=60) == 3


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs POSIX signals")
def test_signals_are_held_no_longer_than_it_takes_to_hand_a_pair_over(monkeypatch):
    monkeypatch.setattr("inference.scoring_pool.save_and_score", lambda job: {"name": job})
    with ThreadPoolExecutor(1) as pool:
        assert list(scored(iter("a"), pool, 4)) == [{"name": "a"}]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT, signal.SIGTERM}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_process_that_is_killed_is_one_line():
    with scoring_pool(2) as pool:
        os.kill(pool.submit(os.getpid).result(timeout=60), signal.SIGKILL)
        with pytest.raises(InputError, match="found one killed, .*--workers 1.*--resume"):
            list(scored(iter(["job"] * 9), pool, 2))


@pytest.mark.parametrize("error", [OSError("handle is closed"), ValueError("bad value(s) in fds_to_keep")])
def test_a_pool_that_breaks_while_it_starts_a_process_is_the_same_line(monkeypatch, error):
    def closed(*_):
        raise error

    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(pool, "submit", closed)
        with pytest.raises(InputError, match="found one killed"):
            list(scored(iter(["job"]), pool, 2))
