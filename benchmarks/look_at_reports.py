"""Open report.html and DVC's page of plots in headless Chromium, and take a picture of each figure.

    snakemake && snakemake --report report.html && lowrank plots
    pip install playwright && sudo apt install chromium
    python benchmarks/look_at_reports.py

The exit status is 1 where the browser's console shows an error, or a figure is missing. The
pictures, in `build/screenshots`, are for people to look at. Neither page may load anything from the
network.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import ConsoleMessage, Page, sync_playwright

from lowrank.config.reading import load_params

CHROMIUM = "/usr/bin/chromium"
PICTURES = Path("build/screenshots")
ALL_VARIANTS = ("Accuracy by latency", "Accuracy by MACs", "Energy", "Table")
OF_A_VARIANT = ("Ranks by layer", "Time by layer", "Fine-tuning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, default=Path("report.html"))
    parser.add_argument("--plots", type=Path, default=Path("dvc_plots/index.html"))
    options = parser.parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    wrong = []
    with sync_playwright() as playwright:
        # As root, in a container, there is no sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for look, path in ((look_at_report, options.report), (look_at_plots, options.plots)):
            page = browser.new_page(viewport={"width": 1500, "height": 1100})
            wrong += looked_at(page, look, path)
        browser.close()
    print("\n".join(wrong) or f"no error, every figure there; pictures in {PICTURES}")
    sys.exit(bool(wrong))


def looked_at(page: Page, look: Callable[[Page], list[str]], path: Path) -> list[str]:
    """What is wrong with a page: in the browser's console, and by `look`."""
    wrong: list[str] = []

    def told(message: ConsoleMessage) -> None:
        if message.type == "error":
            wrong.append(f"console: {message.text}")

    page.on("console", told)
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("requestfailed", lambda request: wrong.append(f"not loaded: {request.url}"))
    page.route(re.compile(r"^https?://"), lambda route: route.abort())
    page.goto(path.resolve().as_uri())
    page.wait_for_timeout(3000)
    return wrong + look(page)


def look_at_report(page: Page) -> list[str]:
    """Open every figure of Snakemake's report; what is missing."""
    page.screenshot(path=PICTURES / "report.png")
    wrong = []
    matrix = load_params().matrix
    places = [(("All variants",), what) for what in ALL_VARIANTS]
    places += [
        ((model, method), what)
        for model in matrix.models
        for method in matrix.methods
        for what in OF_A_VARIANT
    ]
    for path, what in places:
        page.reload()
        page.wait_for_timeout(300)
        for each in path:
            page.get_by_text(each, exact=True).first.click()
            page.wait_for_timeout(200)
        row = page.locator("tr").filter(has=page.get_by_text(what, exact=True)).first
        if not row.count():
            wrong.append(f"report: {'/'.join(path)}: no '{what}'")
            continue
        # The page's logo is an image, too.
        shown = page.locator("img[src^='data:image'], iframe")
        before = shown.count()
        row.locator("[iconname=eye]").click()
        page.wait_for_timeout(500)
        name = "_".join([*path, what]).replace(" ", "_").lower()
        page.screenshot(path=PICTURES / f"report_{name}.png")
        if shown.count() == before:
            wrong.append(f"report: {'/'.join(path)}: '{what}' shows nothing")
    return wrong


def look_at_plots(page: Page) -> list[str]:
    """Whether each of DVC's plots was drawn."""
    wrong = []
    figures = page.locator(".vega-embed")
    drawn = page.locator(".vega-embed canvas, .vega-embed svg")
    matrix = load_params().matrix
    expected = 3 * len(matrix.models) * len(matrix.methods) + 2
    if not drawn.count() >= figures.count() == expected:
        wrong.append(f"plots: {figures.count()} of {expected} are there, {drawn.count()} drawn")
    for number in range(figures.count()):
        figures.nth(number).screenshot(path=PICTURES / f"plots_{number:02}.png")
    return wrong


if __name__ == "__main__":
    main()
