"""The report as a browser shows it: headless Chromium, driven by playwright (extra ``browser-tests``)."""

import csv
import shutil
from pathlib import Path

import pytest
from made_up_run import make_run

from uqbias.report.page import write_report
from uqbias.report.run_data import RunData

playwright = pytest.importorskip(
    "playwright.sync_api", reason="the report is not tested in a browser: pip install 'uqbias[browser-tests]'"
)
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="the report is not tested in a browser: no Chromium on PATH"),
    pytest.mark.slow,
]
SOFTWARE_GL = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
MINUTES = 180_000.0
#: Lowest contrast of each text with what lies behind it, by WCAG 2.1.
CONTRAST = """() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parts(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const spoken = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  const words = [...document.querySelectorAll("body *")].filter((one) => spoken(one) && one.checkVisibility());
  return words.map((element) => {
    const [a, b] = [parts(getComputedStyle(element).color), behind(element)].map(light);
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.textContent.trim().slice(0, 40)];
  }).sort((one, other) => one[0] - other[0])[0];
}"""

#: Number and name of the element that has the focus, and the width of the line round it.
FOCUS = """() => {
  const at = document.activeElement, index = [...document.querySelectorAll("*")].indexOf(at);
  return [index + at.tagName, at.tagName === "IFRAME" ? "3px" : getComputedStyle(at).outlineWidth];
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "complete", 3))


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_GL, timeout=MINUTES)
        yield chromium
        chromium.close()


@pytest.fixture
def load(browser):
    """Open a file; what the browser complains of, or asks a network for, is a failure at the end."""
    faults, contexts = [], []

    def opened(path, width=1280, *, script="", **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        contexts[-1].set_default_timeout(MINUTES)
        page = contexts[-1].new_page()
        page.add_init_script(script)
        page.on("console", lambda message: message.type in ("error", "warning") and faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith(("file:", "data:", "blob:")) or faults.append(asked.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [fault for fault in faults if "GPU stall due to ReadPixels" not in fault] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_fits_and_can_be_read(load, report, width, scheme):
    page = load(report, width, color_scheme=scheme, is_mobile=width < 500)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    images = page.evaluate("[...document.images].map((image) => image.naturalWidth)")
    assert len(images) == 8
    assert min(images) > 100
    ratio, text = page.evaluate(CONTRAST)
    assert ratio >= 4.5, text
    if width == 1280:
        tables = page.evaluate(
            "[...document.querySelectorAll('.wide')].map((one) => one.scrollWidth - one.clientWidth)"
        )
        assert max(tables) == 0
    else:  # figures scroll within their plates rather than shrink until nobody can read them
        assert page.evaluate("document.images[0].getBoundingClientRect().width") > 600


@pytest.mark.parametrize(("scheme", "paper", "ink"), [("light", (255, 255, 255), 0x22), ("dark", (21, 24, 27), 0xE4)])
def test_figures_follow_the_colour_scheme(load, report, tmp_path, scheme, paper, ink):
    from matplotlib.image import imread

    page = load(report, color_scheme=scheme)
    page.locator("#learning + figure img").screenshot(path=tmp_path / "learning.png")
    pixels = (255 * imread(tmp_path / "learning.png")[..., :3]).round().astype(int)
    assert (abs(pixels - paper).max(axis=-1) <= 1).mean() > 0.8
    assert (abs(pixels[..., 0] - ink) <= 3).sum() > 100


def test_every_control_is_reached_by_the_keyboard_and_shows_it(load, report):
    page = load(report)
    controls = page.locator("a, summary, iframe, [tabindex='0']").count()
    reached = set()
    for _ in range(controls + 10):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(FOCUS)
        if not name.endswith(("BODY", "HTML")):
            reached.add(name)
            assert outline == "3px", name
    hidden = page.locator("details:not([open]) [tabindex='0']").count()
    assert len(reached) == controls - hidden


def test_frames_in_3d_say_why_they_were_harvested(load, report):
    page = load(report)
    page.locator("iframe").scroll_into_view_if_needed()
    inside = page.frame_locator("iframe")
    story = inside.locator("#story")
    story.get_by_text("round 1, label 100: farthest_point; oracle energy 0.0 kJ/mol above the lowest label").wait_for()
    inside.get_by_role("button", name="Previous").press("Enter")
    story.get_by_text("round 2, label 199").wait_for()
    inside.get_by_label("Frame").select_option(index=50)
    story.get_by_text("round 2, label 150").wait_for()
    assert inside.locator("canvas").count() == 1


def test_readable_without_javascript(load, report):
    page = load(report, java_script_enabled=False)
    page.locator("summary", has_text="The frames as a table").click()
    rows = page.locator("#frames ~ details tbody tr")
    assert rows.count() == 100
    assert rows.first.inner_text().split()[:3] == ["1", "100", "farthest_point"]
    assert page.locator("figure img").count() == 8


def test_data_of_a_figure_are_a_download(load, report):
    page = load(report)
    run = RunData.load(report.parent)
    with page.expect_download() as waiting:
        page.get_by_label("Data of What was learned per label as CSV").click()
    assert waiting.value.suggested_filename == "learning.csv"
    lines = Path(waiting.value.path()).read_text().splitlines()
    rows = [*csv.DictReader(line for line in lines if not line.startswith("#"))]
    force = [row for row in rows if (row["panel"], row["series"]) == ("1", "whole map")]
    assert [row["x"] for row in force] == ["100", "150", "200"]
    assert [float(row["y"]) for row in force] == pytest.approx(run.values("force_mae_meV_per_A"), rel=1e-5)


def test_printed_on_paper(load, report, tmp_path):
    page = load(report, 720)  # A4 between its margins
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    assert page.locator("text=Data (CSV)").first.is_hidden()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('iframe')).display") == "none"
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def test_a_run_that_goes_on_loads_its_page_anew(load, tmp_path, monkeypatch):
    monkeypatch.setattr("uqbias.report.page.SECTIONS", ())  # the figures do not matter here
    folder = make_run(tmp_path / "run", 1)
    text = (folder / "summary.json").read_text()
    (folder / "summary.json").write_text(text.replace("all 0 rounds are done", ""))
    path = write_report(folder)
    page = load(path, script="window.setInterval = (...given) => { window.repeated = given; };")
    assert page.evaluate("repeated[1]") == 60_000
    path.write_text(path.read_text().replace("not finished", "further on"))
    page.evaluate("repeated[0]()")
    page.get_by_text("further on").wait_for()
    page.get_by_label("Load this page anew every minute").uncheck()
    path.write_text(path.read_text().replace("further on", "at the end"))
    page.evaluate("repeated[0]()")
    page.wait_for_timeout(1000)
    assert page.get_by_text("further on").count() == 1
    page.reload()
    assert not page.get_by_label("Load this page anew every minute").is_checked()
