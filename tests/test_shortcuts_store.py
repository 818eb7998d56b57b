"""Entries on disk: whole or not there, whatever happens to the process, the disk or the files."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from spafit_hf.shortcuts import store as store_module
from spafit_hf.shortcuts.segment import INDEX, RECORD_BYTES, STATES, SegmentWriter
from spafit_hf.shortcuts.store import Store

WIDTH = 8


def make(folder: Path, name: str = "a", max_bytes: int = 10**9, dtype: torch.dtype = torch.float32) -> Store:
    return Store(folder, name, {"layers": 2}, WIDTH, dtype, max_bytes)


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def states(number: int, tokens: int = 5, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(number)).to(dtype)


def filled(folder: Path, numbers: range = range(10)) -> Store:
    store = make(folder)
    assert store.put([(key(number), states(number, 1 + number % 4)) for number in numbers]) == len(numbers)
    return store


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_is_put_is_got(tmp_path: Path, dtype: torch.dtype) -> None:
    store = make(tmp_path, dtype=dtype)
    entries = [(key(number), states(number, 1 + number, dtype)) for number in range(6)]
    assert store.put(entries) == 6
    store.close()
    again = make(tmp_path, dtype=dtype)
    assert len(again) == 6
    for name, expected in entries:
        found = again.get(name)
        assert found is not None
        assert torch.equal(found, expected)
    assert again.get(key(99)) is None
    assert again.put(entries) == 0  # nothing is written twice


def test_another_name_is_another_store(tmp_path: Path) -> None:
    filled(tmp_path)
    assert make(tmp_path, "b").get(key(1)) is None


def test_processes_see_what_others_wrote(tmp_path: Path) -> None:
    first, second = filled(tmp_path, range(3)), make(tmp_path)
    assert len(second) == 3
    second.put([(key(7), states(7))])
    assert key(7) not in first
    first.refresh()
    found = first.get(key(7))
    assert found is not None
    assert torch.equal(found, states(7))


@pytest.mark.parametrize("cut", range(1, RECORD_BYTES))
def test_a_record_that_was_cut_off_is_not_read(tmp_path: Path, cut: int) -> None:
    filled(tmp_path).close()
    (index,) = tmp_path.rglob(f"*{INDEX}")
    os.truncate(index, index.stat().st_size - cut)
    store = make(tmp_path)
    assert len(store) == 9
    assert all(torch.equal(store.get(key(number)), states(number, 1 + number % 4)) for number in range(9))
    assert store.put([(key(9), states(9))]) == 1


def test_states_that_were_cut_off_or_changed_are_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path).close()
    (file,) = tmp_path.rglob(f"*{STATES}")
    size = file.stat().st_size
    with open(file, "r+b") as opened:
        opened.seek(4)  # within the first entry
        opened.write(b"\xff")
    os.truncate(file, size - 1)  # within the last one
    store = make(tmp_path)
    assert key(9) not in store
    assert store.get(key(0)) is None
    assert "damaged" in caplog.text
    assert torch.equal(store.get(key(1)), states(1, 2))
    assert store.put([(key(0), states(0, 1))]) == 1
    assert torch.equal(store.get(key(0)), states(0, 1))


def test_a_record_of_noise_is_not_read(tmp_path: Path) -> None:
    filled(tmp_path).close()
    (index,) = tmp_path.rglob(f"*{INDEX}")
    with open(index, "ab") as opened:
        opened.write(os.urandom(RECORD_BYTES))
    assert len(make(tmp_path)) == 10


def test_the_budget_is_kept_and_the_rest_left_out(tmp_path: Path) -> None:
    entry = 5 * WIDTH * 4 + RECORD_BYTES
    about = make(tmp_path).used_bytes()
    store = make(tmp_path, max_bytes=about + 3 * entry)
    assert store.put([(key(number), states(number)) for number in range(10)]) == 3
    assert "budget" in store.full
    assert "raise prefix_cache_max_bytes" in store.full
    assert store.used_bytes() <= about + 3 * entry
    assert store.put([(key(20), states(20))]) == 0
    assert torch.equal(store.get(key(2)), states(2))
    # another base finds the budget used up by this one, and is told so
    other = make(tmp_path, "b", max_bytes=about + 3 * entry)
    assert other.put([(key(1), states(1))]) == 0
    assert "by other bases" in other.full


def test_some_of_the_disk_is_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "FREE_BYTES", 2**62)
    store = make(tmp_path)
    assert store.put([(key(1), states(1))]) == 0
    assert "full but for" in store.full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs takes rights that this user does not have")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "FREE_BYTES", -(2**40))  # or the store would stop before the disk does
    store = make(small_disk)
    number = 0
    while not store.full:
        store.put([(key(number + each), states(number + each, 40)) for each in range(4)])
        number += 4
        assert number < 400
    assert "No space left" in store.full
    kept = len(store)
    assert 0 < kept < number
    again = make(small_disk)
    assert len(again) == kept
    assert all(torch.equal(again.get(key(each)), states(each, 40)) for each in range(kept))


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The same by a limit, which needs no rights: in a process of its own, since it cannot be raised again."""

    def child() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        store = make(tmp_path)
        for number in range(100):
            store.put([(key(number), states(number, 40))])
        os._exit(0 if "File too large" in store.full and 0 < len(store) < 100 else 1)

    assert run(child) == 0
    store = make(tmp_path)
    assert len(store) == 20_000 // (40 * WIDTH * 4)
    assert all(torch.equal(store.get(key(each)), states(each, 40)) for each in range(len(store)))


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = make(tmp_path / "file")
    assert "cannot be written to" in store.full
    assert store.put([(key(1), states(1))]) == 0
    assert store.get(key(1)) is None


def test_an_append_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SegmentWriter(tmp_path)
    writer.append([(key(0), states(0))])
    sizes = [writer.path.with_suffix(suffix).stat().st_size for suffix in (STATES, INDEX)]
    real = os.write
    calls = iter([5, None])

    def fail(file: int, data: memoryview) -> int:
        part = next(calls)
        if part is None:
            raise OSError(28, "No space left on device")
        return real(file, data[:part])

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(OSError, match="No space"):
        writer.append([(key(1), states(1))])
    monkeypatch.undo()
    assert [writer.path.with_suffix(suffix).stat().st_size for suffix in (STATES, INDEX)] == sizes
    writer.append([(key(2), states(2))])
    writer.close()


def run(child: object) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=child)  # type: ignore[arg-type]
    process.start()
    process.join(60)
    return process.exitcode


def test_killed_while_writing(tmp_path: Path) -> None:
    """Writers are killed at different moments; what they left is whole, and the next one goes on from it."""
    seen = 0
    for attempt in range(4):

        def child(attempt: int = attempt) -> None:
            store = make(tmp_path)
            for number in range(attempt * 10_000, (attempt + 1) * 10_000):
                store.put([(key(number), states(number))])

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        until = time.monotonic() + 20
        while len(make(tmp_path)) < seen + 5 and time.monotonic() < until:
            time.sleep(0.002 * (attempt + 1))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        store = make(tmp_path)
        assert len(store) > seen
        seen = len(store)
    assert all(torch.equal(store.get(name), states(int.from_bytes(name, "little"))) for name in store._places)
    assert store.put([(key(10**6), states(1))]) == 1  # the lock of the killed is free


def test_two_processes_at_once(tmp_path: Path) -> None:
    def child(start: int) -> None:
        store = make(tmp_path)
        for number in range(start, start + 40):
            store.put([(key(number), states(number))])
        os._exit(0)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=child, args=(start,)) for start in (0, 20)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    store = make(tmp_path)
    assert len(store) == 60
    assert all(torch.equal(store.get(key(number)), states(number)) for number in range(60))
