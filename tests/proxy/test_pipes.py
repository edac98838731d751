"""The pool of pipes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

import pytest

from tests.proxy.peer import descriptors, descriptors_left
from tnat64d.proxy.pipes import IDLE_PIPES, PIPE_SIZE_BYTES, Pipe, PipePool


@pytest.fixture
def pool() -> Iterator[PipePool]:
    """An empty pool; it leaves nothing open."""
    before = descriptors()
    pool = PipePool()
    yield pool
    pool.close()
    assert descriptors() == before


def taken(pool: PipePool) -> Pipe:
    pipe = pool.take()
    assert pipe is not None
    return pipe


def test_a_pipe_is_big_and_never_blocks(pool: PipePool) -> None:
    pipe = taken(pool)
    assert fcntl.fcntl(pipe.write_fd, fcntl.F_GETPIPE_SZ) == PIPE_SIZE_BYTES
    with pytest.raises(BlockingIOError):
        os.read(pipe.read_fd, 1)
    assert os.write(pipe.write_fd, bytes(2 * PIPE_SIZE_BYTES)) == PIPE_SIZE_BYTES
    with pytest.raises(BlockingIOError):
        os.write(pipe.write_fd, b"x")
    pipe.close()


def test_no_program_that_is_started_inherits_a_pipe(pool: PipePool) -> None:
    pipe = taken(pool)
    assert not os.get_inheritable(pipe.read_fd)
    assert not os.get_inheritable(pipe.write_fd)
    pool.give_back(pipe)


def test_an_empty_pipe_is_lent_again(pool: PipePool) -> None:
    pipe = taken(pool)
    pool.give_back(pipe)
    assert taken(pool) is pipe
    pool.give_back(pipe)


def test_a_pipe_that_holds_bytes_is_not_lent_again(pool: PipePool) -> None:
    before = descriptors()
    pipe = taken(pool)
    pipe.held_bytes = os.write(pipe.write_fd, b"somebody's")
    pool.give_back(pipe)
    assert descriptors() == before


def test_no_more_pipes_are_kept_than_promised(pool: PipePool) -> None:
    before = descriptors()
    pipes = [taken(pool) for _ in range(IDLE_PIPES + 3)]
    for pipe in pipes:
        pool.give_back(pipe)
    assert len(descriptors() - before) == 2 * IDLE_PIPES


@pytest.mark.parametrize("left", [0, 1])
def test_without_descriptors_there_is_none(pool: PipePool, left: int) -> None:
    with descriptors_left(left):
        assert pool.take() is None
    pool.give_back(taken(pool))


def test_a_pipe_that_may_not_grow_is_lent_as_it_is(pool: PipePool, monkeypatch: pytest.MonkeyPatch) -> None:
    # More than 2 GiB: fcntl(F_SETPIPE_SZ) refuses it to everybody (fs/pipe.c, round_pipe_size).
    monkeypatch.setattr("tnat64d.proxy.pipes.PIPE_SIZE_BYTES", (1 << 31) + 1)
    pipe = taken(pool)
    assert fcntl.fcntl(pipe.write_fd, fcntl.F_GETPIPE_SZ) < PIPE_SIZE_BYTES
    pool.give_back(pipe)
