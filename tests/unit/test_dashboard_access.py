"""Who may ask what of the dashboard, what a request has to look like, and that readings are shared."""

import asyncio
import socket
from collections.abc import Callable

import pytest

from workers.dashboard.access import Denied, check_action, check_host, own_names
from workers.dashboard.actions import Action, wish_of
from workers.dashboard.sharing import Shared

NAMES = own_names(["fleet.example.org"])
GOOD = {"X-Fleet-Request": "1", "Content-Type": "application/json"}


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:5555", "localhost:5555", "[::1]:5555", "10.1.2.3", "FLEET.example.org", socket.gethostname()],
)
def test_the_dashboard_answers_to_its_own_names_and_to_addresses(host: str) -> None:
    check_host(host, NAMES)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "", "[", "fleet"])
def test_a_name_that_somebody_else_pointed_here_is_refused(host: str) -> None:
    with pytest.raises(Denied) as denied:
        check_host(host, NAMES)

    assert denied.value.hindrance == "host"


@pytest.mark.parametrize(
    "headers",
    [
        GOOD,
        GOOD | {"Origin": "http://localhost:5555", "Sec-Fetch-Site": "same-origin"},
        GOOD | {"Content-Type": "application/json; charset=utf-8"},
    ],
)
def test_a_request_of_our_own_page_or_of_a_program_may_act(headers: dict[str, str]) -> None:
    check_action(headers, "localhost:5555")


@pytest.mark.parametrize(
    ("headers", "hindrance"),
    [
        (GOOD | {"Origin": "http://evil.example"}, "origin"),
        (GOOD | {"Origin": "null"}, "origin"),
        (GOOD | {"Origin": "http://localhost:8080"}, "origin"),
        (GOOD | {"Sec-Fetch-Site": "cross-site"}, "origin"),
        (GOOD | {"Sec-Fetch-Site": "same-site"}, "origin"),
        (GOOD | {"Sec-Fetch-Site": "none"}, "origin"),
        ({"Content-Type": "application/json"}, "csrf"),
        ({"X-Fleet-Request": "1", "Content-Type": "text/plain"}, "csrf"),
        ({"X-Fleet-Request": "1"}, "csrf"),
    ],
)
def test_what_another_site_may_have_sent_does_not_act(headers: dict[str, str], hindrance: str) -> None:
    with pytest.raises(Denied) as denied:
        check_action(headers, "localhost:5555")

    assert denied.value.hindrance == hindrance


@pytest.mark.parametrize(
    ("action", "body", "complaint"),
    [
        (Action.RECOVER, b"{}", "field reason"),
        (Action.RECOVER, b"", "Invalid JSON"),
        (Action.RECOVER, b"[1]", "field value"),
        (Action.RECOVER, b'{"reason": " "}', "say why"),
        (Action.RECOVER, b'{"reason": "two\\nlines"}', "say why"),
        (Action.RECOVER, b'{"reason": "\\u202eback"}', "say why"),
        (Action.RECOVER, b'{"reason": "' + b"x" * 201 + b'"}', "say why"),
        (Action.RECOVER, b'{"reason": 7}', "field reason"),
        (Action.RECOVER, b'{"reason": "x", "force": "very"}', "field force"),
        (Action.RECOVER, b'{"reason": "x", "force": "force"}', "field confirm"),
        (Action.RECOVER, b'{"reason": "x", "force": "kill-healthy", "confirm": "vm-2"}', "field confirm"),
        (Action.RECOVER, b'{"reason": "x", "for": "1h"}', "field for: means nothing to recover"),
        (Action.RESET, b'{"reason": "x", "hold": "h"}', "field hold: means nothing to reset"),
        (Action.MAINTENANCE, b'{"reason": "x"}', "field for: say how long"),
        (Action.PAUSE, b'{"reason": "x", "for": "soon"}', "field for"),
        (Action.PAUSE, b'{"reason": "x", "for": "0s"}', "field for"),
        (Action.PAUSE, b'{"reason": "x", "until": "1h"}', "field until"),
    ],
)
def test_a_wrong_wish_is_told_by_its_field(action: Action, body: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        wish_of(action, "vm-1", body)


def test_a_wish_is_read() -> None:
    wish = wish_of(Action.PAUSE, "vm-1", b'{"reason": " disk swap ", "for": "1h30m"}')

    assert (wish.reason, wish.for_ms, wish.force) == ("disk swap", 5_400_000, "plain")
    assert wish_of(Action.RECOVER, "vm-1", b'{"reason":"x","force":"force","confirm":"vm-1"}').force == "force"


# --- sharing


class Readings:
    def __init__(self) -> None:
        self.now, self.read = 0.0, [""]
        self.read.clear()
        self.takes = 0.0

    def shared(self, *, most: int = 10) -> Shared[int]:
        def read(key: str) -> int:
            self.read.append(key)
            self.now += self.takes
            if key == "broken":
                raise OSError("away")
            return len(self.read)

        async def run(work: Callable[[], int]) -> int:
            await asyncio.sleep(0)
            return work()

        return Shared(read, run, fresh_s=1.0, most=most, monotonic=lambda: self.now)


def test_however_many_ask_there_is_one_reading_per_interval() -> None:
    readings = Readings()

    async def scenario() -> list[int]:
        shared = readings.shared()
        first = await asyncio.gather(*[shared.get() for _ in range(50)])
        readings.now += 0.9
        again = await shared.get()
        readings.now += 0.2
        return [*set(first), again, await shared.get()]

    assert asyncio.run(scenario()) == [1, 1, 2]


def test_a_slow_reading_rests_longer_before_the_next() -> None:
    readings = Readings()
    readings.takes = 2.0

    async def scenario() -> int:
        shared = readings.shared()
        await shared.get()
        readings.now += 7.9
        return await shared.get()

    assert asyncio.run(scenario()) == 1


def test_a_reading_that_failed_is_not_repeated_for_everybody() -> None:
    readings = Readings()

    async def scenario() -> None:
        shared = readings.shared()
        for _ in range(3):
            with pytest.raises(OSError, match="away"):
                await shared.get("broken")
        readings.now += 1.1
        with pytest.raises(OSError, match="away"):
            await shared.get("broken")

    asyncio.run(scenario())
    assert readings.read == ["broken", "broken"]


def test_who_goes_away_does_not_take_the_reading_from_the_others() -> None:
    readings = Readings()

    async def scenario() -> int:
        shared = readings.shared()
        impatient = asyncio.ensure_future(shared.get())
        patient = asyncio.ensure_future(shared.get())
        await asyncio.sleep(0)
        impatient.cancel()
        return await patient

    assert asyncio.run(scenario()) == 1


def test_only_so_many_keys_are_kept() -> None:
    readings = Readings()

    async def scenario() -> None:
        shared = readings.shared(most=2)
        for key in ("a", "b", "a", "c", "a", "b"):
            await shared.get(key)
        shared.forget("a")
        await shared.get("a")

    asyncio.run(scenario())
    assert readings.read == ["a", "b", "c", "b", "a"]
