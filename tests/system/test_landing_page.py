"""The page for people, from a real server, in a real browser. Screenshots: build/screenshots/."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from components.binary_cache import anonymous_policy
from program.outputs.landing_page import landing_page
from program.outputs.machines import ClientConfiguration
from tests.system.reverse_proxy import Add, Lie, nothing, reverse_proxy, truth
from tests.system.stack import CHECKOUT
from tests.system.test_cache import s3
from toolbox.minio_server import MinioServer

pytestmark = pytest.mark.system

BUCKET = "nix-cache"
KEYS = (
    "s3.homelab.local-1:MNdV1gE3P3pEpuQMOJC+Jdm7ccXyu3/6Pxcx3DbYYRA=",
    "s3.homelab.local-2:y1aWlAaYz0gPzxoj1OSbt1S1SkpkK0PcWKxbO8gyYXQ=",
)
AXE = files("axe_playwright_python") / "axe.min.js"
SCREENSHOTS = CHECKOUT / "build" / "screenshots"
WIDTHS = {"phone": (390, 844), "desktop": (1280, 900)}

WORKER = b"""
self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(clients.claim()));
self.addEventListener("fetch", (event) => event.respondWith(
  new Response("<p id=key-1>another</p>", { headers: { "content-type": "text/html" } })
));
"""
LURE = (
    "log/y.drv",
    b"""<!doctype html><title>log</title><script>
navigator.serviceWorker.register("../x.narinfo").then(() => navigator.serviceWorker.ready)
  .then(() => { document.title = "there"; }, () => { document.title = "refused"; });
</script>""",
    "text/html",
)

# Asks for nothing of its own: a browser's services would look for hosts that are not there.
ARGUMENTS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-sync",
    "--no-first-run",
    # Its sandbox refuses to run for root.
    "--no-sandbox",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium on this machine; only root on Debian could install it")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def client(minio: MinioServer) -> ClientConfiguration:
    """What the page says: a cache with a private authority and two keys."""
    return ClientConfiguration(f"{minio.endpoint}/{BUCKET}", KEYS, minio.ca_file.read_text())


@pytest.fixture(scope="module")
def url(minio: MinioServer, client: ClientConfiguration) -> str:
    """Where a bucket with the page answers."""
    server = s3(minio, minio.root_user, minio.root_password)
    server.make_bucket(BUCKET)
    server.set_bucket_policy(BUCKET, anonymous_policy(BUCKET, download=True, listing=False))
    page = landing_page(client, 7).encode()
    server.put_object(
        BUCKET, "use.html", io.BytesIO(page), len(page), content_type="text/html; charset=utf-8"
    )
    return f"{client.substituter}/use.html"


@dataclass
class Visit:
    """A page that was opened, and what the browser asked for and complained of meanwhile."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def text(self, selector: str = "body") -> str:
        """Return what a person sees of an element."""
        return self.page.locator(selector).inner_text()


def open_page(
    browser: Browser,
    url: str,
    *,
    language: str = "en-US",
    scheme: str = "light",
    width: str = "desktop",
    scripts: bool = True,
) -> Visit:
    """Open the page as someone with these preferences does."""
    across, down = WIDTHS[width]
    context: BrowserContext = browser.new_context(
        locale=language,
        color_scheme="dark" if scheme == "dark" else "light",
        viewport={"width": across, "height": down},
        ignore_https_errors=True,
        java_script_enabled=scripts,
        permissions=["clipboard-read", "clipboard-write"],
    )
    visit = Visit(context.new_page())
    visit.page.on("request", lambda request: visit.requests.append(request.url))
    visit.page.on("console", lambda message: visit.complaints.append(message.text))
    visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    answer = visit.page.goto(url)
    assert answer is not None
    assert answer.status == 200
    return visit


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_it_is_accessible_and_fits_at_every_width_and_in_every_colour(
    browser: Browser, url: str, width: str, scheme: str, language: str
) -> None:
    visit = open_page(browser, url, language=language, scheme=scheme, width=width)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    name = f"{width}-{scheme}-{language[:2]}.png"
    visit.page.screenshot(path=SCREENSHOTS / name, full_page=True)
    results = visit.page.evaluate(f"{AXE.read_text()}\n;axe.run()")
    assert [violation["id"] for violation in results["violations"]] == []
    assert len(results["passes"]) > 20
    assert visit.page.evaluate("document.documentElement.scrollWidth") == WIDTHS[width][0]
    background = visit.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    brightness = sum(map(int, background[4:-1].split(",")))
    assert (brightness < 3 * 128) == (scheme == "dark")


def test_nothing_but_the_page_is_asked_for_and_the_browser_has_no_complaint(
    browser: Browser, url: str
) -> None:
    visit = open_page(browser, url)
    visit.page.wait_for_load_state("networkidle")
    assert visit.requests == [url]
    assert visit.complaints == []


@pytest.mark.parametrize(
    ("language", "heading", "lang"),
    [
        ("zh-CN", "在 NixOS 上使用", "zh-Hans"),
        ("zh-TW", "在 NixOS 上使用", "zh-Hans"),
        ("en-GB", "Use it on NixOS", "en"),
        ("fr-FR", "Use it on NixOS", "en"),
    ],
)
def test_it_speaks_the_browsers_language(
    browser: Browser, url: str, language: str, heading: str, lang: str
) -> None:
    visit = open_page(browser, url, language=language)
    assert visit.text("#nixos") == heading
    assert visit.page.locator("html").get_attribute("lang") == lang


def test_the_other_language_is_a_button_away_and_is_remembered(browser: Browser, url: str) -> None:
    visit = open_page(browser, url)
    visit.page.get_by_role("button", name="中文").click()
    assert visit.text("#keys") == "公钥"
    assert "二进制缓存" in visit.page.title()
    visit.page.reload()
    assert visit.text("#keys") == "公钥"
    assert visit.page.get_by_role("button", name="中文", pressed=True).count() == 1


def test_a_button_copies_the_text_to_the_letter_and_says_so(
    browser: Browser, url: str, client: ClientConfiguration
) -> None:
    visit = open_page(browser, url)
    for name, text in {
        "Copy NixOS module": client.nixos_configuration(),
        "Copy flake.nix": client.flake_nix_config(),
        "Copy nix.conf": client.nix_conf(),
        "Copy s3.homelab.local-2": KEYS[1],
    }.items():
        visit.page.get_by_role("button", name=name).click()
        visit.page.get_by_text("Copied", exact=True).wait_for(state="attached")
        assert visit.page.evaluate("navigator.clipboard.readText()") == text.strip("\n")


def test_where_the_clipboard_is_closed_the_text_is_selected(browser: Browser, url: str) -> None:
    visit = open_page(browser, url)
    # As on a page that came without TLS.
    visit.page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    visit.page.get_by_role("button", name="Copy Substituter").click()
    visit.page.get_by_text("Selected: press Ctrl+C").wait_for(state="attached")
    assert visit.page.evaluate("getSelection().toString()") == url.rpartition("/")[0]


def test_without_scripts_it_can_be_read_and_has_no_dead_buttons(browser: Browser, url: str) -> None:
    visit = open_page(browser, url, language="zh-CN", scripts=False)
    assert "Use it on NixOS" in visit.text()
    assert "在 NixOS 上使用" not in visit.text()
    assert visit.page.get_by_role("button").count() == 0


def test_a_script_that_someone_slips_in_does_not_run(browser: Browser, url: str) -> None:
    visit = open_page(browser, url)
    visit.page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "document.title = 'taken over'";
            document.body.append(script);
        }"""
    )
    assert visit.page.title() != "taken over"
    assert any("Content Security Policy" in complaint for complaint in visit.complaints)


def refuse_workers(
    _method: str, _target: str, headers: Mapping[str, str]
) -> tuple[int, bytes] | None:
    return (403, b"") if "Service-Worker" in headers else None


def sandbox(target: str) -> Mapping[str, str]:
    policy = {"Content-Security-Policy": "sandbox"}
    return {} if target == f"/{BUCKET}/use.html" else policy


@pytest.mark.parametrize(
    ("lie", "add", "shown"),
    [(truth, nothing, "another"), (refuse_workers, nothing, KEYS[0]), (truth, sandbox, KEYS[0])],
    ids=["no rule", "workers refused", "sandbox"],
)
@pytest.mark.usefixtures("url")
def test_the_rules_of_a_proxy_keep_a_worker_of_who_may_push_out(
    browser: Browser, minio: MinioServer, lie: Lie, add: Add, shown: str
) -> None:
    """As docs/security.md says; without them, the page is what the worker makes of it."""
    server = s3(minio, minio.root_user, minio.root_password)
    for name, content, content_type in (("x.narinfo", WORKER, "text/javascript"), LURE):
        server.put_object(BUCKET, name, io.BytesIO(content), len(content), content_type)
    with reverse_proxy(minio, lie=lie, add=add) as proxy:
        visit = open_page(browser, f"{proxy}/{BUCKET}/use.html")
        assert visit.text("#key-1") == KEYS[0]
        visit.page.goto(f"{proxy}/{BUCKET}/{LURE[0]}")
        if add is nothing:
            visit.page.wait_for_function("document.title != 'log'")
        else:
            # Not even its script runs.
            assert any("sandboxed" in complaint for complaint in visit.complaints)
        visit.page.goto(f"{proxy}/{BUCKET}/use.html")
        assert visit.text("#key-1") == shown
