"""What `fedinit deploy run` says while it waits for a run: whom that waits for, once."""

from __future__ import annotations

from fedinit.deploy.doing import doing_of
from fedinit.runs import status


def test_whom_a_run_waits_for_is_said_once_and_anew_when_it_is_another(tmp_path):
    said: list[str] = []
    look = doing_of(tmp_path, said.append)
    look()  # the run has no folder yet
    watch = status.StatusObserver(tmp_path, "fedit")
    for seconds in (3600, 3590):
        watch.waiting(
            f"1 of 3 clients are there; waits for nodes with partition-id 1, 2, the run fails in {seconds} s without"
        )
        look(), look()
    watch.waiting("2 of 3 clients are there; waits for partition-id 2, the run fails in 3580 s without")
    look()
    watch.doing("")
    look()
    first, second = said
    assert (
        first == "  1 of 3 clients are there; waits for nodes with partition-id 1, 2, the run fails in 3600 s without"
    )
    assert second.startswith("  2 of 3 clients are there")
    status.remove(tmp_path)
    look()
    assert len(said) == 2


def test_who_is_left_out_is_said_as_it_comes(tmp_path):
    """What was in the ledger of a run that goes on was said before; a line that is being written waits for its end."""
    ledger, said = tmp_path / "ledger.jsonl", []
    ledger.write_text('{"kind": "refused", "round": 1, "client": 0, "detail": "before"}\n')
    look = doing_of(tmp_path, said.append)
    look()
    assert said == []
    line = '{"kind": "refused", "round": 2, "client": 1, "detail": "nothing came in time"}\n'
    with ledger.open("a") as file:
        file.write('{"kind": "resumed", "round": 1}\nno JSON\n' + line + line[:20])
        file.flush()
        look(), look()
        assert said == ["  round 2: client 1: its update did not count: nothing came in time"]
        file.write(line[20:])
    look()
    assert said == 2 * said[:1]


def test_the_ledger_of_a_run_that_begins_anew_is_read_from_its_beginning(tmp_path):
    ledger, said = tmp_path / "ledger.jsonl", []
    ledger.write_text(9 * '{"kind": "refused", "round": 1, "client": 0, "detail": "of the run before"}\n')
    look = doing_of(tmp_path, said.append)
    ledger.rename(tmp_path / "aside")
    look()
    odd = '3\n{"kind": "began_without", "clients": null}\n{"kind": ["a"]}\n'  # which somebody damaged
    ledger.write_text(odd + '{"kind": "client_back", "round": 1, "client": 0}\n')
    look(), look()
    assert said == ["  round 1: client 0: is there again"]
