"""The report's page in a real browser, from a file. Screenshots: build/screenshots/."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from operations.report_page import Reported, history_with, report_page
from tests.system.test_landing_page import AXE, SCREENSHOTS, WIDTHS, open_page
from tests.system.test_landing_page import browser as browser  # noqa: PLC0414
from tests.unit.operations.test_report_page import HOSTILE_STATUS, NOW, STATUS

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where a report lies, after a month of reports."""
    file: Path = tmp_path_factory.mktemp("report") / "report.html"
    before = [
        Reported(NOW - timedelta(days=day), 2000 - 40 * day, 10**9 - 10**7 * day)
        for day in range(30, 0, -1)
    ]
    file.write_text(report_page(STATUS, history_with(before, STATUS)), encoding="utf-8")
    return file.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_it_is_accessible_fits_and_asks_for_nothing(
    browser: Browser, url: str, width: str, scheme: str, language: str
) -> None:
    visit = open_page(browser, url, language=language, scheme=scheme, width=width)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    name = f"report-{width}-{scheme}-{language[:2]}.png"
    visit.page.screenshot(path=SCREENSHOTS / name, full_page=True)
    results = visit.page.evaluate(f"{AXE.read_text()}\n;axe.run()")
    assert [violation["id"] for violation in results["violations"]] == []
    assert len(results["passes"]) > 20
    assert visit.page.evaluate("document.documentElement.scrollWidth") == WIDTHS[width][0]
    assert visit.requests == [url]
    assert visit.complaints == []
    heading = {"en-US": "What expires when", "zh-CN": "何时过期"}[language]
    assert visit.text("#expiring") == heading


def test_without_scripts_it_is_all_there(browser: Browser, url: str) -> None:
    visit = open_page(browser, url, scripts=False)
    assert "2,000 on" not in visit.text()
    assert "Largest closures" in visit.text()
    assert visit.page.get_by_role("button").count() == 0


def test_nobody_elses_text_does_anything(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "hostile.html"
    file.write_text(report_page(HOSTILE_STATUS, []), encoding="utf-8")
    visit = open_page(browser, file.as_uri())
    assert visit.page.title() != "taken over"
    assert visit.requests == [file.as_uri()]
    assert visit.complaints == []
    assert visit.page.locator("main script:not([type])").count() == 0
    assert visit.page.locator("main img").count() == 0
