"""The Fleet and VM pages in a real Flower, looked at by a real Chromium: with 0, 20 and 10,000 VMs, and acting.

Pictures of what was seen are kept in build/artefacts/fleet-pages, or in the folder RELIABILITY_ARTEFACTS.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.conftest import require
from tests.support.browser import CHROMIUM, Browser, Page, chromium
from tests.support.builders import a_vm, an_episode
from tests.support.cli import ME, PASSWORD, cli_site, declare, execute, program
from tests.support.cluster import REPOSITORY, Cluster, kill
from tests.support.populace import populate, put
from tests.support.processes import wait_until
from workers.domain.audit import EventKind
from workers.domain.vm import EpisodeEnd, State
from workers.embedded import free_port

pytestmark = [pytest.mark.full, pytest.mark.timeout(180)]

LOGIN = f"operator:{PASSWORD}"
PICTURES = Path(os.environ.get("RELIABILITY_ARTEFACTS", REPOSITORY / "build" / "artefacts")) / "fleet-pages"
DRAWN = "document.querySelector('#page')?.innerText"
VM_DRAWN = "document.querySelector('#why li') && document.querySelector('#timeline svg')"


@dataclass(frozen=True, slots=True)
class Look:
    width: int
    height: int
    theme: str

    def __str__(self) -> str:
        return f"{self.width}-{self.theme}"

    def page(self, browser: Browser) -> Page:
        return browser.page(self.width, self.height, theme=self.theme, login=LOGIN)


LOOKS = [Look(*size, theme) for size in ((1280, 800), (390, 844)) for theme in ("light", "dark")]


@dataclass(frozen=True, slots=True)
class Pages:
    """A fleet and the Flower that shows it."""

    site: Cluster
    url: str

    def open(self, page: Page, path: str = "/fleet", drawn: str = DRAWN) -> Page:
        page.go(self.url + path)
        page.wait(drawn)
        return page


@contextmanager
def flower(site: Cluster, name: str = "flower", *, prefix: str = "") -> Iterator[Pages]:
    port = free_port()
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        if prefix:
            patch.setenv("FLOWER_URL_PREFIX", prefix)
        process = stack.enter_context(program(site, "flower", "--port", str(port), name=name))
        url = f"http://127.0.0.1:{port}{'/' + prefix if prefix else ''}"
        wait_until(lambda: process.is_alive and _answers(url), timeout_s=30, what="Flower to answer")
        yield Pages(site, url)
        assert process.stop() == 0


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthcheck").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    require("chromium", CHROMIUM is not None, "apt-get install chromium")
    with chromium(tmp_path_factory.mktemp("chromium")) as made:
        yield made


PagesOf = Callable[[int], Pages]


@pytest.fixture(scope="module")
def pages_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PagesOf]:
    """A fleet of so many VMs, as records alone, with a Flower; made when it is first asked for."""
    made: dict[int, Pages] = {}
    with ExitStack() as stack:

        def of(vms: int) -> Pages:
            if vms not in made:
                site = stack.enter_context(cli_site(tmp_path_factory.mktemp(f"fleet-{vms}")))
                populate(site.fleet, vms, odd_every=3 if vms < 100 else 50)
                made[vms] = stack.enter_context(flower(site))
            return made[vms]

        yield of


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """A fleet with a real worker and real (stand-in) VMMs; it recovers only what it is asked for."""
    with (
        cli_site(tmp_path_factory.mktemp("fleet-served")) as site,
        program(site, "worker", name="worker") as worker,
        program(site, "beat", name="beat"),
    ):
        worker.wait_for_log("ready.", timeout_s=30)
        with flower(site) as pages:
            yield pages


def lost_vm(site: Cluster, name: str) -> str:
    """A VM that ran, and whose VMM was killed."""
    vm_id = running_vm(site, name)
    kill(site.record(vm_id), signal.SIGKILL)
    site.wait_state(vm_id, State.ORPHANED)
    return vm_id


def running_vm(site: Cluster, name: str) -> str:
    vm_id = declare(site, f"{ME}-{name}")
    assert execute(site, "recover", vm_id, "--wait").status == 0
    site.wait_healthy(vm_id)
    return vm_id


# --- looks

OVERFLOW = "document.documentElement.scrollWidth > innerWidth"
# Every element with text of its own: its contrast (WCAG 2) against the first background below it.
PALE = """(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (el) => {
    for (; el; el = el.parentElement) {
      const found = rgb(getComputedStyle(el).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const contrast = (el) => {
    const both = [light(rgb(getComputedStyle(el).color)), light(ground(el))].sort((a, b) => b - a);
    return (both[0] + 0.05) / (both[1] + 0.05);
  };
  const speaks = (el) => [...el.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
    && el.checkVisibility() && !el.closest("svg, noscript, :disabled");
  return [...document.querySelectorAll("body *")].filter(speaks).filter((el) => contrast(el) < 4.5)
    .map((el) => `${el.className || el.localName} ${contrast(el).toFixed(2)}`);
})()"""


@pytest.mark.parametrize("vms", [0, 20, 10_000])
@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_the_fleet_page_is_drawn_whole_in_every_look(pages_of: PagesOf, browser: Browser, vms: int, look: Look) -> None:
    pages = pages_of(vms)
    page = pages.open(look.page(browser))
    page.wait("document.querySelector('#figures dd')")

    name = f"fleet-{vms}-{look}"
    page.picture(PICTURES / f"{name}.png")
    assert page.text("#states .tile b") == f"{vms:,}"
    assert page.js("document.querySelectorAll('#vms tbody tr').length") == min(max(vms, 1), 50)
    assert "No VM is registered" in page.text("#vms tbody") or vms
    assert page.js(OVERFLOW) is False
    assert page.js(PALE) == []
    page.js("document.querySelector('#vms').scrollIntoView()")
    page.picture(PICTURES / f"{name}-table.png")
    assert page.complaints() == []
    assert [url for url in page.requested() if not url.startswith(pages.url)] == []


@pytest.mark.parametrize("vms", [20, 10_000])
@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_the_page_of_a_vm_is_drawn_whole_in_every_look(
    pages_of: PagesOf, browser: Browser, vms: int, look: Look
) -> None:
    pages = pages_of(vms)
    page = pages.open(look.page(browser), "/fleet/vm/vm-00000", VM_DRAWN)

    page.picture(PICTURES / f"vm-{vms}-{look}.png", whole=True)
    assert page.text("#vm").split() == ["vm-00000", "failed"]
    assert "the VMM did not answer in 10 s" in page.text("#why")
    assert page.js(OVERFLOW) is False
    assert page.js(PALE) == []
    page.click("[data-action=kill-healthy]")
    page.picture(PICTURES / f"vm-{vms}-{look}-dialog.png")
    assert page.js(PALE) == []
    assert page.complaints() == []
    assert [url for url in page.requested() if not url.startswith(pages.url)] == []


def test_a_vm_that_nobody_knows_is_explained(pages_of: PagesOf, browser: Browser) -> None:
    page = browser.page(login=LOGIN)
    pages_of(0).open(page, "/fleet/vm/vm-1", "document.querySelector('#why li')")

    page.wait("document.querySelector('#where').innerText.includes('no vm')")
    assert page.js("[...document.querySelectorAll('#actions button')].every((button) => button.disabled)")


def test_the_theme_is_chosen_by_hand_and_kept(pages_of: PagesOf, browser: Browser) -> None:
    dark = "getComputedStyle(document.body).backgroundColor === 'rgb(18, 22, 15)'"
    pages, page = pages_of(0), browser.page(theme="light", login=LOGIN)
    pages.open(page)
    assert page.js(dark) is False

    page.click("#theme")
    page.click("#theme")
    assert (page.text("#theme"), page.js(dark)) == ("Theme: dark", True)
    pages.open(page)
    assert (page.text("#theme"), page.js(dark)) == ("Theme: dark", True)
    page.go(pages.url + "/workers")
    assert page.js("document.documentElement.dataset.bsTheme") == "dark"


# --- hands on the keyboard


def test_the_table_is_searched_sorted_and_paged_by_keyboard(pages_of: PagesOf, browser: Browser) -> None:
    page = pages_of(10_000).open(browser.page(login=LOGIN))
    first = "document.querySelector('#vms tbody a').innerText"

    page.press("/")
    page.write("vm-0123")
    page.wait("document.querySelector('#found').innerText.startsWith('10 VMs')")
    assert page.js("location.search") == "?q=vm-0123"
    page.press("Escape")
    page.wait("document.querySelector('#found').innerText.startsWith('10,000 VMs')")

    page.js("document.querySelector('th[data-key=id] button').focus()")
    page.press("Enter")
    page.wait(f"{first} === 'vm-00000'")
    page.press("Enter")
    page.wait(f"{first} === 'vm-09999'")
    assert page.js("document.querySelector('th[data-key=id]').getAttribute('aria-sort')") == "descending"
    assert page.focus_text() == "VM"

    page.js("document.querySelector('#next').focus()")
    page.press("Enter")
    page.wait(f"{first} === 'vm-09949'")
    page.js("document.querySelector('#vms tbody a').focus()")
    page.press("Enter")
    page.wait(VM_DRAWN)
    assert page.text("#vm").startswith("vm-09949")


def test_the_first_tab_leads_past_the_head(pages_of: PagesOf, browser: Browser) -> None:
    page = pages_of(0).open(browser.page(login=LOGIN))

    page.press("Tab")
    assert page.focus_text() == "Skip to the content"
    page.press("Enter")
    assert page.js("document.activeElement.id") == "main"
    page.press("Tab")
    assert page.js("document.activeElement.dataset.state") == ""


def test_a_tile_filters_and_what_is_asked_for_stands_in_the_address(pages_of: PagesOf, browser: Browser) -> None:
    pages, page = pages_of(10_000), browser.page(login=LOGIN)
    pages.open(page)

    page.click(".tile.failed")
    page.wait("[...document.querySelectorAll('#vms .chip')].every((chip) => chip.innerText === 'failed')")
    assert page.js("document.querySelector('.tile.failed').getAttribute('aria-pressed')") == "true"
    pages.open(page, "/fleet" + page.js("location.search"))
    assert page.text("#found").startswith("29 VMs")


# --- live


def test_what_changes_is_shown_without_loading_the_page_again(served: Pages, browser: Browser) -> None:
    page = served.open(browser.page(login=LOGIN))
    page.js("window.unchanged = true")
    page.js("document.querySelector('.tile.failed').focus()")

    put(served.site.fleet, [a_vm("appears", state=State.FAILED, episode=an_episode(end=EpisodeEnd.FAILED))])

    page.wait("document.querySelector('#vms').innerText.includes('appears')")
    assert page.js("window.unchanged && document.activeElement.dataset.state") == "failed"


def test_a_recovery_is_started_by_button_and_followed_to_its_end(served: Pages, browser: Browser) -> None:
    site = served.site
    vm_id = lost_vm(site, "b1")
    before = site.record(vm_id)
    page = served.open(browser.page(login=LOGIN), f"/fleet/vm/{vm_id}", VM_DRAWN)

    page.js("document.querySelector('[data-action=recover]').focus()")
    page.press("Enter")
    assert page.js("document.activeElement.id") == "ask-reason"
    page.write("the disk is back")
    page.press("Enter")

    page.wait("document.querySelector('#outcome')", timeout_s=30)
    page.picture(PICTURES / "vm-recovered.png", whole=True)
    assert page.text("#outcome") == f"{vm_id} is healthy."
    assert page.text("#chip") == "healthy"
    after = site.wait_healthy(vm_id, after=before)
    assert site.live(vm_id) == [after.process.pid if after.process else None]
    (asked,) = [each.event for each in site.events(vm_id) if each.event.actor == "flower:operator"][:1]
    assert (asked.kind, "the disk is back" in asked.why) == (EventKind.OVERRIDE, True)
    assert page.js("document.querySelectorAll('#timeline .attempt.recovered').length") >= 1
    assert "recovered" in page.js("document.querySelector('#timeline-words').textContent")
    assert page.complaints() == []


def test_flowers_own_list_of_tasks_has_recoveries_and_no_checks(served: Pages) -> None:
    site = served.site
    vm_id = lost_vm(site, "b2")
    checked = _checked_ms(site, vm_id)
    with httpx.Client(base_url=served.url, auth=("operator", PASSWORD)) as client:
        path = f"/api/fleet/vms/{vm_id}/recover"
        assert client.post(path, json={"reason": "x"}, headers={"X-Fleet-Request": "1"}).status_code == 202
        site.wait_healthy(vm_id)
        wait_until(lambda: _checked_ms(site, vm_id) > checked, what="a check of the VM")
        tasks = wait_until(lambda: client.get("/api/tasks").json(), what="the task to be shown")

    assert {task["name"] for task in tasks.values()} == {"workers.tasks.recovery.recover_vm"}


def _checked_ms(site: Cluster, vm_id: str) -> int:
    return site.fleet.store.read([vm_id]).found[vm_id].checked_ms or 0


def test_a_refusal_is_told_in_the_dialog_and_escape_leaves_it(served: Pages, browser: Browser) -> None:
    vm_id = running_vm(served.site, "b3")
    page = served.open(browser.page(login=LOGIN), f"/fleet/vm/{vm_id}", VM_DRAWN)

    page.click("[data-action=recover]")
    page.write("just so")
    page.press("Enter")
    page.wait("document.querySelector('#ask-error').innerText")
    page.picture(PICTURES / "vm-refused.png")
    assert vm_id in page.text("#ask-error")
    page.press("Escape")
    assert page.js("document.querySelector('#ask').open") is False
    assert page.js("document.activeElement.dataset.action") == "recover"


def test_killing_a_healthy_vm_asks_for_its_id(served: Pages, browser: Browser) -> None:
    site = served.site
    vm_id = running_vm(site, "b4")
    before = site.record(vm_id)
    page = served.open(browser.page(login=LOGIN), f"/fleet/vm/{vm_id}", VM_DRAWN)

    page.click("[data-action=kill-healthy]")
    page.write("stuck inside")
    page.press("Enter")
    assert page.js("document.querySelector('#ask').open"), "the id is missing"
    page.click("#ask-confirm")
    page.write("vm-other")
    page.press("Enter")
    page.wait("document.querySelector('#ask-error').innerText.includes('confirm')")
    page.js("document.querySelector('#ask-confirm').value = ''")
    page.write(vm_id)
    page.press("Enter")

    page.wait("document.querySelector('#outcome')", timeout_s=30)
    assert page.text("#outcome") == f"{vm_id} is healthy."
    site.wait_healthy(vm_id, after=before)


def test_a_pause_and_a_maintenance_are_set_shown_and_lifted(served: Pages, browser: Browser) -> None:
    vm_id = running_vm(served.site, "b5")
    page = served.open(browser.page(login=LOGIN), f"/fleet/vm/{vm_id}", VM_DRAWN)

    page.click("[data-action=pause]")
    page.write("disk swap")
    page.press("Enter")
    held = "document.querySelector('#banners').innerText"
    page.wait(f"{held}.includes('is paused: disk swap (by flower:operator)')")
    page.click("[data-action=maintenance]")
    page.write("new kernel")
    page.click("#ask-for")
    page.write("30m")
    page.press("Enter")
    page.wait(
        "document.querySelector('#banners').innerText.includes('is in maintenance: new kernel (by flower:operator)')"
    )
    page.picture(PICTURES / "vm-held.png")
    page.click("[data-action=resume]")
    page.write("done")
    page.press("Enter")
    page.wait(f"!{held}")


# --- safety


def test_markup_in_ids_hosts_and_errors_is_shown_and_does_nothing(served: Pages, browser: Browser) -> None:
    site = served.site
    markup = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
    over = an_episode(error=f"{markup}\u202egnp.exe\u0007", end=EpisodeEnd.FAILED)
    put(site.fleet, [a_vm("odd-1", state=State.FAILED, episode=over), a_vm(f"odd-{markup}", host=f'"><b>{markup}')])
    page = served.open(browser.page(login=LOGIN), "/fleet?q=odd-")
    page.wait("document.querySelectorAll('#vms tbody a').length === 2")

    assert markup in page.text("#vms")
    assert "\\u{202e}gnp.exe\\u{7}" in page.text("#vms")
    page.picture(PICTURES / "fleet-markup.png", whole=True)
    served.open(page, "/fleet/vm/odd-1", VM_DRAWN)
    assert markup in page.text("#episode")
    assert markup in page.text("#why")
    served.open(page, "/fleet/vm/%3Cscript%3Ewindow.hacked=1%3C%2Fscript%3E", "document.querySelector('.banner')")
    assert "<script>" in page.text("#main")
    assert page.js("window.hacked ?? null") is None
    assert page.js("document.querySelectorAll('main script, main img').length") == 0


def test_another_site_cannot_act_in_the_name_of_who_is_logged_in(served: Pages, browser: Browser) -> None:
    put(served.site.fleet, [a_vm("target-1")])
    elsewhere = served.url.replace("127.0.0.1", "localhost")  # another origin; the login goes along all the same
    page = browser.page(login=LOGIN)
    page.go(f"{elsewhere}/healthcheck")
    target = json.dumps(f"{served.url}/api/fleet/vms/target-1/pause")
    body = json.dumps(json.dumps({"reason": "evil"}))

    plain = f"fetch({target}, {{method: 'POST', mode: 'no-cors', credentials: 'include', body: {body}}})"
    ours = (
        f"fetch({target}, {{method: 'POST', credentials: 'include', body: {body}, "
        "headers: {'Content-Type': 'application/json', 'X-Fleet-Request': '1'}})"
    )
    page.js(f"{plain}.then(() => 'sent', () => 'kept')")
    assert page.js(f"{ours}.then(() => 'sent', () => 'kept')") == "kept"

    assert "vm:target-1" not in served.site.fleet.modes.all_modes()[1].scopes


def test_without_a_password_the_buttons_are_off_and_say_why(served: Pages, browser: Browser) -> None:
    site = served.site
    put(site.fleet, [a_vm("shown-1")])
    bare = Cluster(site.folder, site.server, {"RECOVERY__ENABLED": "false"}, host=site.host)
    with flower(bare, "flower-bare") as pages:
        page = pages.open(browser.page(), "/fleet/vm/shown-1", VM_DRAWN)
        page.picture(PICTURES / "vm-read-only.png")
        assert page.js("[...document.querySelectorAll('#actions button')].every((button) => button.disabled)")
        assert "flower.basic_auth" in page.text("#why-disabled")
        refused = httpx.post(
            f"{pages.url}/api/fleet/vms/shown-1/pause", json={"reason": "x"}, headers={"X-Fleet-Request": "1"}
        )
        assert (refused.status_code, refused.json()["hindrance"]) == (403, "read_only")


def test_flowers_prefix_and_navbar_know_the_pages(served: Pages, browser: Browser) -> None:
    put(served.site.fleet, [a_vm("prefixed-1")])
    with flower(served.site, "flower-ops", prefix="ops") as pages:
        page = browser.page(login=LOGIN)
        page.go(f"{pages.url}/workers")
        page.click(".app-nav a[href='/ops/fleet']")
        page.wait(DRAWN)
        page.js("document.querySelector('#vms a[href=\"/ops/fleet/vm/prefixed-1\"]').click()")
        page.wait(VM_DRAWN)
        assert page.js("location.pathname") == "/ops/fleet/vm/prefixed-1"
        assert [url for url in page.requested() if not url.startswith(pages.url)] == []


def test_redis_being_away_is_told_and_what_was_known_stays(tmp_path: Path, browser: Browser) -> None:
    with cli_site(tmp_path) as site:
        populate(site.fleet, 20)
        with flower(site) as pages:
            page = pages.open(browser.page(login=LOGIN))
            site.server.stop()
            page.wait("document.querySelector('#banners').innerText.includes('Redis does not answer')")
            page.picture(PICTURES / "fleet-no-redis.png")
            assert page.text("#states .tile b") == "20"
            site.server.start()


def test_a_flower_that_has_gone_is_told(tmp_path: Path, browser: Browser) -> None:
    with cli_site(tmp_path) as site:
        page = browser.page(login=LOGIN)
        with flower(site) as pages:
            pages.open(page)
        page.wait("document.querySelector('#connection').innerText.includes('does not answer')")
