"""Streams over a real table: in order, without loss, with an end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from channels.db import database_sync_to_async
from django.test import TransactionTestCase

from events import names
from events.emit import emit_all, made
from events.models import Event
from gateway.event_streams import Hub, Stream

pytestmark = pytest.mark.database


class Reader:
    """Reads a stream as a client does."""

    def __init__(self, hub: Hub, topic: str = "", after: int | None = None, allowed: Callable[[], bool] = lambda: True):
        stream = hub.open(names.Wanted.parse(topic), after, allowed)
        assert stream is not None
        self.stream: Stream = stream
        self.text = b""

    async def more(self) -> bytes:
        async with asyncio.timeout(10):
            piece = await anext(self.stream)
        self.text += piece
        return piece

    async def until(self, count: int) -> list[dict[str, Any]]:
        while len(self.events()) < count:
            await self.more()
        return self.events()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line[6:]) for line in self.text.split(b"\n") if line.startswith(b"data: ")]

    def numbers(self) -> list[int]:
        return [event["data"]["n"] for event in self.events()]


class StreamTests(TransactionTestCase):
    databases = "__all__"

    def run_with(self, work: Callable[[Hub], Any], **options: Any) -> None:
        async def live() -> None:
            hub = Hub(**options)
            try:
                await work(hub)
            finally:
                for stream in list(hub._streams):
                    await stream.aclose()
                if hub._reader is not None:
                    await asyncio.wait((hub._reader,), timeout=5)
                await asyncio.get_running_loop().run_in_executor(None, hub._executor.shutdown)

        asyncio.run(live())

    def write(self, *numbers: int, name: str = "a.b") -> Any:
        return database_sync_to_async(emit_all)([made(name, {"n": n}) for n in numbers])

    def test_a_frame_is_id_name_and_json_and_nothing_is_an_empty_event(self):
        async def work(hub: Hub) -> None:
            reader = Reader(hub)
            assert await reader.more() == b"retry: 1000\n: open\n"
            await self.write(1)
            frame = await reader.more()
            number = reader.events()[0]["id"]
            assert frame.startswith(b"id: %d\nevent: a.b\ndata: {" % number)
            assert frame.endswith(b"}\n\n")
            assert b"\n\n" not in reader.text[:-2]

        self.run_with(work)

    def test_without_an_id_only_what_comes_and_with_one_all_behind_it(self):
        async def work(hub: Hub) -> None:
            await self.write(1, 2, 3)
            first = await database_sync_to_async(lambda: Event.objects.order_by("id").first().pk)()
            fresh, from_one, everything = Reader(hub), Reader(hub, after=first), Reader(hub, after=0)
            for reader in (fresh, from_one, everything):
                await reader.more()
            await self.write(4)
            for reader, wanted in ((fresh, [4]), (from_one, [2, 3, 4]), (everything, [1, 2, 3, 4])):
                await reader.until(len(wanted))
                assert reader.numbers() == wanted

        self.run_with(work)

    def test_a_reader_far_behind_catches_up_over_what_is_in_memory_without_loss_or_repetition(self):
        async def work(hub: Hub) -> None:
            await self.write(*range(2000))
            await database_sync_to_async(lambda: Event.objects.filter(data__n__in=[3, 700, 1999]).delete())()
            keeps = Reader(hub)
            await keeps.more()  # the reader of the table runs on, and keeps the newest 1,024
            await self.write(*range(2000, 3500))
            await keeps.until(1500)
            late = Reader(hub, after=0)
            await late.until(3497)
            assert late.numbers() == [n for n in range(3500) if n not in (3, 700, 1999)]
            await self.write(3500)
            await late.until(3498)
            assert late.numbers()[-2:] == [3499, 3500]

        self.run_with(work)

    def test_only_chosen_topics_are_told(self):
        async def work(hub: Hub) -> None:
            reader = Reader(hub, "config.*")
            await reader.more()
            await self.write(1)
            await self.write(2, name=names.PUBLISHED)
            await reader.until(1)
            assert reader.numbers() == [2]

        self.run_with(work)

    def test_what_another_process_writes_is_seen_within_two_seconds(self):
        async def work(hub: Hub) -> None:
            reader = Reader(hub)
            await reader.more()
            # Written without the signal, as by a command.
            await database_sync_to_async(lambda: Event.objects.create(name="a.b", topic="a/b", data={"n": 1}))()
            async with asyncio.timeout(2):
                await reader.until(1)

        self.run_with(work)

    def test_what_this_process_writes_is_seen_at_once(self):
        async def work(hub: Hub) -> None:
            reader = Reader(hub)
            await reader.more()
            await asyncio.sleep(0.1)
            loop, took = asyncio.get_running_loop(), []
            for number in range(5):
                begin = loop.time()
                await self.write(number)
                await reader.until(number + 1)
                took.append(loop.time() - begin)
            assert sorted(took)[2] < 0.5, took  # it looks by itself once a second only

        self.run_with(work)

    def test_a_quiet_stream_is_kept_alive_and_ends_when_its_reader_lost_the_right(self):
        async def work(hub: Hub) -> None:
            answers = [True, True, False]
            reader = Reader(hub, allowed=lambda: answers.pop(0))
            await reader.more()
            for _ in range(3):
                assert await reader.more() == b":\n"
            with pytest.raises(StopAsyncIteration):
                await reader.more()

        self.run_with(work, ping_s=0.1)

    def test_streams_that_are_told_to_end_say_when_to_come_back_and_later_ones_go_on(self):
        async def work(hub: Hub) -> None:
            early = Reader(hub)
            await early.more()
            await asyncio.get_running_loop().run_in_executor(None, hub.end_all)  # from any thread
            assert await early.more() == b"retry: 1000\n"
            with pytest.raises(StopAsyncIteration):
                await early.more()
            late = Reader(hub)
            await late.more()
            await self.write(1)
            await late.until(1)

        self.run_with(work)

    def test_with_the_last_reader_the_looking_ends(self):
        async def work(hub: Hub) -> None:
            reader = Reader(hub)
            await reader.more()
            task = hub._reader
            assert task is not None
            await reader.stream.aclose()
            await asyncio.wait((task,), timeout=5)
            assert task.done()
            assert hub.streams == 0

        self.run_with(work)

    def test_an_id_from_before_the_database_was_restored_goes_on_with_what_comes(self):
        async def work(hub: Hub) -> None:
            await self.write(1)
            reader = Reader(hub, after=10**9)
            await reader.more()
            await self.write(2)
            await reader.until(1)
            assert reader.numbers() == [2]

        self.run_with(work)
