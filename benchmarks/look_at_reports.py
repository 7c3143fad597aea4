"""Open report.html and DVC's page of plots in headless Chromium and take screenshots.

    snakemake && snakemake --report report.html && lowrank plots
    pip install playwright && sudo apt install chromium
    python benchmarks/look_at_reports.py

Each figure is shown and saved as a screenshot in `build/screenshots`, for people to look at. The
exit status is 1 if the browser's console shows an error, if a figure is missing, or if a page tries
to load something from the network.
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
VARIANT_FIGURES = ("Ranks by layer", "Time by layer", "Fine-tuning")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, default=Path("report.html"))
    parser.add_argument("--plots", type=Path, default=Path("dvc_plots/index.html"))
    options = parser.parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    problems = []
    with sync_playwright() as playwright:
        # The sandbox does not work as root in a container.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for look, path in ((look_at_report, options.report), (look_at_plots, options.plots)):
            page = browser.new_page(viewport={"width": 1500, "height": 1100})
            problems += check(page, look, path)
        browser.close()
    print("\n".join(problems) or f"no errors, no missing figures; screenshots in {PICTURES}")
    sys.exit(bool(problems))


def check(page: Page, look: Callable[[Page], list[str]], path: Path) -> list[str]:
    """Return the problems of a page: errors in the browser's console, and the result of `look`."""
    problems: list[str] = []

    def record(message: ConsoleMessage) -> None:
        if message.type == "error":
            problems.append(f"console: {message.text}")

    page.on("console", record)
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("requestfailed", lambda request: problems.append(f"not loaded: {request.url}"))
    page.route(re.compile(r"^https?://"), lambda route: route.abort())
    page.goto(path.resolve().as_uri())
    page.wait_for_timeout(3000)
    return problems + look(page)


def look_at_report(page: Page) -> list[str]:
    """Open every figure of Snakemake's report, and return the problems."""
    page.screenshot(path=PICTURES / "report.png")
    problems = []
    matrix = load_params().matrix
    places: list[tuple[tuple[str, ...], str]] = []
    places += [(("All variants",), title) for title in ALL_VARIANTS]
    places += [
        ((model, method), title)
        for model in matrix.models
        for method in matrix.methods
        for title in VARIANT_FIGURES
    ]
    for path, title in places:
        page.reload()
        page.wait_for_timeout(300)
        for text in path:
            page.get_by_text(text, exact=True).first.click()
            page.wait_for_timeout(200)
        row = page.locator("tr").filter(has=page.get_by_text(title, exact=True)).first
        if not row.count():
            problems.append(f"report: {'/'.join(path)}: no '{title}'")
            continue
        # Count the images before and after, because the page's logo is an image, too.
        shown = page.locator("img[src^='data:image'], iframe")
        before = shown.count()
        row.locator("[iconname=eye]").click()
        page.wait_for_timeout(500)
        name = "_".join([*path, title]).replace(" ", "_").lower()
        page.screenshot(path=PICTURES / f"report_{name}.png")
        if shown.count() == before:
            problems.append(f"report: {'/'.join(path)}: '{title}' shows nothing")
    return problems


def look_at_plots(page: Page) -> list[str]:
    """Check that each of DVC's plots was drawn, and return the problems."""
    problems = []
    figures = page.locator(".vega-embed")
    drawn = page.locator(".vega-embed canvas, .vega-embed svg")
    matrix = load_params().matrix
    expected = 3 * len(matrix.models) * len(matrix.methods) + 2
    if not drawn.count() >= figures.count() == expected:
        problems.append(f"plots: {figures.count()} of {expected} are there, {drawn.count()} drawn")
    for number in range(figures.count()):
        figures.nth(number).screenshot(path=PICTURES / f"plots_{number:02}.png")
    return problems


if __name__ == "__main__":
    main()
