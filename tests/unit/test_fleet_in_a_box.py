"""The pure parts of the benchmark of whole fleets: its model, its wire format, its table and its plot."""

import json
import random
from base64 import b64encode
from itertools import islice
from statistics import mean
from xml.etree import ElementTree as ET

import pytest

from tests.benchmarks import fleet_report
from tests.benchmarks.fleet_model import CostModel, Shape, percentile, process_of, vantage_of
from tests.benchmarks.fleet_queues import BrokerError, message_of, packed, popped
from tests.benchmarks.fleet_report import Size, Window
from tests.benchmarks.fleet_server import Work
from tests.benchmarks.plot import Line, Panel, at, chart, decades, words


def chance() -> random.Random:
    return random.Random(1)  # noqa: S311 - it has to be repeatable


def a_window(vms: int, **changes: float) -> Window:
    server = Work(vms / 1e6, vms / 10, vms / 20, vms, 2 * vms, vms / 2e6, vms / 4e6)
    values = {"beat_cpu": vms / 1e6, "hosts_cpu": 0.1, "machine": 0.2, "checks": vms / 30, "messages": vms / 1500}
    return Window(server, **values | changes, errors=0, events={}, ages_ms=(1, 9), lags_ms=(2, 20), hosts_late_ms=3)


def a_size(vms: int, **changes: float) -> Size:
    size = Size(vms, Shape(vms).hosts, 30.0, 70e-6, bytes_per_event=200, events_kept=1000)
    size.empty_bytes, size.stream_bytes, size.used_bytes = 1000, 500, 1500 + 800 * vms
    size.windows = [a_window(vms, **changes)]
    return size


class TestShape:
    def test_each_vm_is_on_one_host_and_each_host_in_one_process(self) -> None:
        shape = Shape(vms=120, per_host=50)

        hosts = [host for index in range(2) for host in shape.part(index, 2)]
        vm_ids = [vm_id for host in hosts for vm_id in shape.vm_ids(host)]

        assert sorted(hosts) == [0, 1, 2]
        assert len(set(vm_ids)) == len(vm_ids) == 120
        assert len(shape.vm_ids(2)) == 20

    def test_every_process_makes_the_same_incarnations(self) -> None:
        assert process_of(3, vantage_of("host-1")) == process_of(3, vantage_of("host-1"))
        assert vantage_of("host-1") != vantage_of("host-2")


class TestModel:
    def test_deaths_come_as_often_as_the_rate_says(self) -> None:
        model = CostModel(deaths=10)

        waits = list(islice(model.deaths_from(chance(), 20_000), 2000))

        assert model.death_every_s(20_000) == 180
        assert mean(waits) == pytest.approx(180, rel=0.1)

    def test_without_a_rate_nothing_dies(self) -> None:
        assert list(CostModel(deaths=0).deaths_from(chance(), 1000)) == []

    def test_the_share_of_looks_that_get_no_answer_is_the_one_asked_for(self) -> None:
        dice = chance()

        answered = [CostModel(unanswered=0.25).answers(dice) for _ in range(4000)]

        assert mean(answered) == pytest.approx(0.75, abs=0.03)

    def test_a_percentile_is_one_of_the_values(self) -> None:
        assert percentile(range(1, 101), 0.5) == 51
        assert percentile(range(1, 101), 0.99) == 100
        assert percentile([7], 0.99) == 7
        assert percentile([], 0.5) == 0


class TestWire:
    def test_a_command_is_written_with_the_length_of_each_word(self) -> None:
        assert packed("BRPOP", "ü", 1) == b"*3\r\n$5\r\nBRPOP\r\n$2\r\n\xc3\xbc\r\n$1\r\n1\r\n"

    def test_a_message_is_complete_when_all_its_bytes_are_there(self) -> None:
        reply = b"*2\r\n$6\r\nchecks\r\n$5\r\nhe\r\no\r\n"

        assert popped(reply) == (b"he\r\no", True)
        assert [popped(reply[:cut])[1] for cut in range(len(reply))] == [False] * len(reply)

    def test_no_message_in_time_is_an_answer_too(self) -> None:
        assert popped(b"*-1\r\n") == (None, True)

    def test_a_refusal_is_an_error(self) -> None:
        with pytest.raises(BrokerError, match="NOAUTH"):
            popped(b"-NOAUTH Authentication required.\r\n")

    def test_a_message_tells_its_task_its_arguments_and_its_time(self) -> None:
        body = b64encode(json.dumps([["vm-1"], {"attempt": 2}, {}]).encode()).decode()
        headers = {"task": "recover", "eta": "1970-01-01T00:01:00+00:00"}
        raw = json.dumps({"body": body, "headers": headers, "properties": {"delivery_tag": "t"}}).encode()

        message = message_of("host-1", raw)

        assert (message.task, list(message.args), message.kwargs, message.tag) == (
            "recover",
            ["vm-1"],
            {"attempt": 2},
            "t",
        )
        assert message.not_before == 60


class TestReport:
    def test_the_bytes_per_vm_leave_out_the_empty_server_and_the_audit(self) -> None:
        assert a_size(1000).bytes_per_vm == 800

    def test_the_table_has_a_column_per_fleet(self) -> None:
        text = fleet_report.report([a_size(1000), a_size(10_000)])

        assert text.splitlines()[0].split() == ["VMs", "1,000", "10,000"]

    def test_a_fleet_whose_hosts_did_not_keep_up_is_named(self) -> None:
        text = fleet_report.report([a_size(1000), a_size(10_000, checks=200)])

        assert "10,000 VMs: the simulated hosts did not keep up" in text
        assert "1,000 VMs: the simulated hosts did not keep up" not in text.replace("10,000", "")

    def test_growth_is_the_cost_of_a_vm_in_the_largest_fleet_over_that_in_the_smallest(self) -> None:
        found = {each.name: each for each in fleet_report.found([a_size(1000), a_size(10_000, beat_cpu=0.03)])}

        assert found["beat CPU per VM, largest fleet over smallest"].median == pytest.approx(3)
        assert found["beat CPU per VM, largest fleet over smallest"].is_kept is False
        assert found["Redis CPU per VM, largest fleet over smallest"].median == pytest.approx(1)
        assert found["checks made over due, largest fleet"].is_kept

    def test_a_quarter_of_a_core_is_the_goal_of_the_fleet_it_was_set_for_only(self) -> None:
        limits = [
            {each.name: each.limit for each in fleet_report.found([a_size(vms)])}["beat CPU, largest fleet"]
            for vms in (10_000, 100_000)
        ]

        assert limits == [None, 0.25]

    def test_the_plot_is_drawn_from_what_was_found(self) -> None:
        text = fleet_report.plotted([a_size(1000), a_size(10_000)])

        ET.fromstring(text)  # noqa: S314 - made right here
        assert "each VM checked every 30 s" in text


class TestPlot:
    def test_an_axis_ends_at_powers_of_ten_around_its_values(self) -> None:
        assert decades([3, 4000]) == (1, 10_000)
        assert decades([100, 1000]) == (100, 1000)

    def test_one_value_and_none_still_have_an_axis(self) -> None:
        assert decades([10]) == (10, 100)
        assert decades([0]) == (1, 10)

    def test_each_decade_takes_the_same_room(self) -> None:
        assert [at(value, 1, 1000, 0, 90) for value in (1, 10, 100, 1000)] == pytest.approx([0, 30, 60, 90])

    def test_powers_of_ten_are_written_short(self) -> None:
        assert [words(value) for value in (0.1, 1, 1000, 100_000, 1e6)] == ["0.1", "1", "1k", "100k", "1M"]

    def test_a_name_may_hold_any_character_and_a_value_of_nothing_is_left_out(self) -> None:
        text = chart("a < b", "VMs", [Panel("CPU & more", "%", [Line("x", [(1, 0), (10, 5)])])])

        ET.fromstring(text)  # noqa: S314 - made right here
        assert text.count("<circle") == 1
