"""Worker threads keep their one intra-op thread, on which the bits of a matrix product may depend."""

from __future__ import annotations

import threading

import torch

from fedinit.threads import intra_op, make_pool, set_intra_op


def test_a_worker_keeps_its_one_thread_whatever_is_set_before_its_first_use():
    with intra_op(3):
        pool = make_pool(1, "worker")
        pool.submit(lambda: None).result()  # it is there, and has not used torch yet
        with intra_op(2):
            pass
        assert pool.submit(torch.get_num_threads).result() == 1
        assert torch.get_num_threads() == 3


def test_what_a_thread_sets_for_itself_alone_is_overrun_by_others():
    """Why: torch's own call does not do it. Where this fails torch was mended, and `set_intra_op` needs one call."""
    found, set_, go = [], threading.Event(), threading.Event()

    def work():
        torch.set_num_threads(1)
        set_.set()
        go.wait()
        found.append(torch.get_num_threads())

    with intra_op(3):
        thread = threading.Thread(target=work)
        thread.start()
        set_.wait()
        torch.set_num_threads(3)
        go.set()
        thread.join()
    assert found == [3]


def test_who_makes_a_pool_keeps_its_own_number():
    found = []

    def work():
        pool = make_pool(1, "worker")
        pool.submit(set_intra_op, 7).result()
        found.append(torch.get_num_threads())

    with intra_op(3):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found == [3]
