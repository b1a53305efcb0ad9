"""report.html: what stands in it, how large it may be, and that it works in a browser."""

import base64
import io
import json
import os
import re
import shutil
from html.parser import HTMLParser
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evaluation.metrics import LOWER_IS_BETTER
from evaluation.report import pictures
from evaluation.report.columns import METRICS, before_and_after
from evaluation.report.index import write_index
from evaluation.report.page import write_report
from evaluation.report.pictures import ColorScale, PairImages
from evaluation.report.plots import charts_of
from evaluation.report.summary import facts_of, tiles_of
from evaluation.report.table import groups_of
from evaluation.scoring import with_mean

NAMES = ["case 2", "case 10", "<b>bold</b></script>", "case 1"]


def make_pairs(names=NAMES, size=(64, 80), label=True, color=False):
    rng = np.random.default_rng(3)
    height, width = size

    def image(*shape):
        return np.rint(rng.random((height, width, *shape)) * 255).astype(np.float32) / 255

    moving_shape = (3,) if color else ()
    return [
        PairImages(
            name,
            fixed=image(),
            moving=image(*moving_shape),
            aligned=image(*moving_shape),
            fused=image(*moving_shape),
            label=image(*moving_shape) if label else None,
        )
        for name in names
    ]


def make_table(names=NAMES, label=True):
    count = len(names)
    steps = np.arange(count)
    nothing = np.full(count, np.nan)
    table = pd.DataFrame(
        {
            "name": names,
            "seconds": 0.1 + 0.01 * steps,
            "qabf": np.resize([0.30, 0.45, 0.20, 0.38], count),
            "qcv": np.resize([500.0, 80.0, 1200.0, 9.5], count),
            "reference": "label" if label else "aligned",
            "rmse": 30.0 + steps if label else nothing,
            "rmse_before": np.resize([40.0, 45.0, 20.0, 50.0], count) if label else nothing,
            "folding": 0.0,
        }
    )
    return with_mean(table)


class Page(HTMLParser):
    """Just enough of a reader: table cells by row, texts by tag, attributes that could load something."""

    def __init__(self, html):
        super().__init__()
        self.html, self.rows, self.texts, self.links, self.tags = html, [], {}, [], []
        self._open, self._cell = [], None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._open.append(tag)
        self.links += [value for key, value in attributes if key in ("src", "href", "srcset", "action")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append({"text": "", **dict(attributes)})
            self._cell = self.rows[-1][-1]

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = None
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if self._cell is not None:
            self._cell["text"] += data
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    def column(self, name):
        """Cells below the heading of a column, the mean last."""
        heads = next(row for row in self.rows if any("data-column" in cell for cell in row))
        index = [cell.get("data-column") for cell in heads].index(name)
        return [row[index] for row in self.rows[self.rows.index(heads) + 1 :]]

    @property
    def columns(self):
        return [cell["data-column"] for row in self.rows for cell in row if "data-column" in cell]

    @property
    def cards(self):
        actual = re.findall(r'<script type="application/json">(.*?)</script>', self.html, re.DOTALL)
        return [json.loads(text) for text in actual]


@pytest.fixture
def write(tmp_path):
    def _write(table=None, pairs=None, title="Run", notes=None):
        path = tmp_path / "out" / "report.html"
        write_report(
            path,
            make_table() if table is None else table,
            make_pairs() if pairs is None else pairs,
            title,
            notes or {},
        )
        return Page(path.read_text("utf-8"))

    return _write


def decode(uri):
    head, data = uri.split(",", 1)
    assert head == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        return np.asarray(picture.convert("RGB"))


def test_the_page_loads_nothing_from_elsewhere(write):
    page = write()
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "http:" not in page.html and "https:" not in page.html and "@import" not in page.html
    assert "default-src 'none'" in page.html


def test_table_has_every_pair_and_the_mean_last(write):
    page = write()
    assert [row[0]["text"] for row in page.rows[2:]] == [*NAMES, "mean"]
    assert [cell["text"] for cell in page.column("qabf")] == ["0.300", "0.450", "0.200", "0.380", "0.333"]


def test_before_stands_in_front_of_after_and_registration_in_front_of_fusion(write):
    assert write().columns == ["rmse_before", "rmse", "folding", "qabf", "qcv", "seconds"]


def test_headlines_span_their_columns():
    assert groups_of(["rmse_before", "rmse", "qabf", "seconds"]) == [("Registration", 2), ("Fusion", 1), ("Run", 1)]


def test_best_values_follow_the_direction_of_the_metric(write):
    page = write()
    best = {
        column: [cell["text"] for cell in page.column(column) if cell.get("class") == "best"]
        for column in page.columns
    }
    assert best == {
        "rmse_before": [],
        "rmse": ["30.00"],
        "folding": [],  # all pairs alike
        "qabf": ["0.450"],
        "qcv": ["9.5"],
        "seconds": ["0.100"],
    }


def test_headings_say_which_direction_is_better(write):
    heads = {
        cell["data-column"]: cell["text"] for row in write().rows for cell in row if "data-column" in cell
    }
    assert "↓, lower is better" in heads["qcv"] and "↑, higher is better" in heads["qabf"]
    assert "↓" not in heads["rmse_before"] and "before" in heads["rmse_before"]


def test_directions_are_those_of_the_metrics():
    lower = LOWER_IS_BETTER | {"epe", "tre", "tre_mm", "disagreement", "expected_error", "error_bound"}
    lower |= {"folding", "seconds"}
    assert {name: metric.better for name, metric in METRICS.items()} == {n: -1 if n in lower else 1 for n in METRICS}


def test_without_labels_the_columns_that_need_them_are_left_out(write):
    page = write(make_table(label=False), make_pairs(label=False))
    assert page.columns == ["folding", "qabf", "qcv", "seconds"]
    assert [card["views"] for card in page.cards] == [["Fused", "Fixed", "Moving", "Aligned"]] * 4
    assert "fusion reference: aligned" in page.html


def test_references_are_shown_where_pairs_differ_in_them(write):
    table = make_table()
    table.loc[1, "reference"] = "aligned"
    references = [row[-1]["text"] for row in write(table).rows[2:-1]]
    assert references == ["label", "aligned", *["label"] * (len(NAMES) - 2)]
    assert "label" not in [cell["text"] for row in write().rows for cell in row]


def test_endpoint_errors_and_doubts_stand_with_the_first_figures(write):
    table = make_table().iloc[:-1]
    table = table.assign(epe_before=4.0, epe=[1.0, 2.0, 3.0, 5.0], disagreement=[0.3, 1.2, 0.4, 2.5])
    page = write(with_mean(table))
    texts = {name: " ".join("".join(page.texts[name]).split()) for name in ("div", "b")}
    assert re.search(r"EPE.*2\.75 3 of 4 pairs better than before", texts["div"])
    assert re.search(r"Disagreement.*1\.10 2 of 4 pairs above 1: look closely", texts["div"])
    assert page.html.count('class="doubtful"') == 2


def test_a_missing_value_is_a_dash_that_sorts_as_empty(write):
    table = make_table()
    table.loc[1, "qabf"] = np.nan
    cell = write(table).column("qabf")[1]
    assert (cell["text"], cell["data-v"]) == ("–", "")


def test_the_mean_is_computed_where_the_table_has_none(write):
    page = write(make_table().iloc[:-1])
    assert page.column("rmse")[-1]["text"] == "31.50"


def test_summary_counts_the_pairs_that_got_better(write):
    # 40 -> 30, 45 -> 31, 20 -> 32 and 50 -> 33.
    page = write()
    assert "3 of 4 pairs better than before" in page.html
    assert page.html.count('class="link worse"') == 1


def test_figures_of_a_pair_and_of_all_by_hand():
    rows = pd.DataFrame({
        "rmse_before": [10.0, 20.0, 40.0], "rmse": [5.0, 30.0, 10.0], "ssim_before": [0.5] * 3, "ssim": [0.6, 0.4, 0.5],
        "disagreement": [1.1, 1.2, np.nan],
    })  # fmt: skip
    verdicts = [[fact["verdict"] for fact in facts_of(row, list(rows))] for _, row in rows.iterrows()]
    assert verdicts == [["better", "better", "doubtful"], ["worse", "worse", "doubtful"], ["better", ""]]
    tiles = [[tile[name] for name in ("before", "value", "detail")] for tile in tiles_of(rows, list(rows))]
    assert tiles == [
        ["23.33", "15.00", "2 of 3 pairs better than before"],
        ["0.500", "0.500", "1 of 3 pairs better than before"],
        ["", "1.15", "2 of 2 pairs above 1: look closely"],
    ]


def test_a_pair_without_a_value_before_is_not_compared():
    rows = pd.DataFrame({"rmse_before": [10.0, np.nan], "rmse": [5.0, 7.0]})
    assert before_and_after(rows, "rmse").to_dict("list") == {"before": [10.0], "after": [5.0]}


def test_plots_by_hand():
    rows = pd.DataFrame({"rmse_before": [10.0, 20.0, 28.0], "rmse": [5.0, 30.0, 8.0], "sd": [1.0, 3.0, 2.0]})
    paired, single = charts_of(rows, ["rmse_before", "rmse", "sd"])
    assert paired["detail"] == "19.33 → 14.33, 2 of 3 better" and single["detail"] == "mean 2.00, sd 1.00"

    def dots(kind: str) -> list[float]:
        return [float(x) for x in re.findall(rf'<circle class="{kind}" cx="([0-9.]+)"', paired["svg"])]

    # 4 % beyond 5 and 30 on either side, over 276 px from 12 on.
    assert dots("dot old") == pytest.approx([12 + 276 * x / 27 for x in (6, 16, 24)], abs=0.06)
    assert dots("dot") == pytest.approx([12 + 276 * x / 27 for x in (1, 26, 4)], abs=0.06)
    # Quartiles 1.5 and 3.5 about the median 2, of 1 to 5.
    svg, unit = charts_of(pd.DataFrame({"sd": [1.0, 2.0, 5.0]}), ["sd"])[0]["svg"], 276 / 4.32
    box = re.search(r'class="box" x="([0-9.]+)" y="8" width="([0-9.]+)".*class="median" d="M([0-9.]+) ', svg).groups()
    assert [float(x) for x in box] == pytest.approx([12 + 0.66 * unit, 2 * unit, 12 + 1.16 * unit], abs=0.06)
    links = re.findall(r'<path class="(link[a-z ]*)" data-i="(\d)"', paired["svg"])
    assert links == [("link", "0"), ("link worse", "1"), ("link", "2")]


def test_names_titles_and_notes_are_escaped(write):
    page = write(title='<i>"A" & B</i>', notes={"<u>key</u>": "<script>alert(1)</script>"})
    assert "u" not in page.tags
    assert not any(raw in page.html for raw in ("<b>bold", '<i>"A"', "alert(1)</script>"))
    assert page.texts["title"] == ['<i>"A" & B</i>']
    assert [card["name"] for card in page.cards] == NAMES


def test_few_pairs_are_embedded_without_loss(write):
    pairs = make_pairs(color=True)
    page = write(pairs=pairs)
    card = page.cards[2]
    assert "embedded without loss, at full size" in page.html
    assert card["views"] == ["Fused", "Fixed", "Moving", "Aligned", "Label"]
    for view, uri in zip(card["views"], card["images"], strict=True):
        expected = np.rint(getattr(pairs[2], view.lower()) * 255)
        expected = expected if expected.ndim == 3 else expected[..., None].repeat(3, axis=2)
        np.testing.assert_array_equal(decode(uri), expected)


def test_extra_images_join_the_switch_at_their_own_size(write):
    pair = make_pairs(["case 2"])[0]._replace(extra={"Gate": np.ones((20, 30, 3))})
    (card,) = write(pairs=[pair]).cards
    assert card["views"][-1] == "Gate"
    assert decode(card["images"][-1]).shape == (20, 30, 3)


def test_values_outside_the_range_are_clipped(write):
    pair = make_pairs(["case 2"])[0]
    pair.fused[:2, :3] = [[-1, 2, np.nan], [np.inf, -np.inf, 0.5]]
    (card,) = write(pairs=[pair]).cards
    assert decode(card["images"][0])[:2, :3, 0].tolist() == [[0, 255, 0], [255, 0, 128]]


@pytest.mark.parametrize("budget", [400_000, 200_000, 120_000])
def test_images_shrink_until_the_page_fits(write, monkeypatch, budget):
    """Noise is the worst case: 30 pairs without loss take over 700 kB."""
    names = [f"{index:03d}" for index in range(30)]
    page_without = write(make_table(names), [])
    monkeypatch.setattr(pictures, "BYTES_PER_ROW", 0)
    monkeypatch.setattr(pictures, "PAGE_BUDGET", budget)
    page = write(make_table(names), make_pairs(names))
    assert 0 < len(page.cards)
    assert sum(len(uri) for card in page.cards for uri in card["images"]) <= budget
    assert len(page.html) - len(page_without.html) <= budget + 4000 * len(names)
    assert "without loss" not in page.html and "smaller or compressed only in this file" in page.html
    if len(page.cards) < len(names):
        assert f"{len(page.cards)} of 30 pairs are shown" in page.html
    assert [row[0]["text"] for row in page.rows[2:-1]] == names


def test_few_of_many_pairs_are_evenly_spaced():
    assert list(pictures.spread(range(30), 4)) == [0, 10, 19, 29]
    assert list(pictures.spread(range(3), 4)) == [0, 1, 2]


def test_twenty_pairs_of_noise_stay_within_the_real_budget():
    """256 x 256 in colour, the worst there is; three pairs stand for twenty to save time."""
    pairs = make_pairs([str(index) for index in range(3)], size=(256, 256), color=True)
    encoding, each = pictures._choose(pairs, (pictures.PAGE_BUDGET - 20 * pictures.BYTES_PER_ROW) * 3 // 20)
    assert encoding.quality is not None
    assert each * 20 <= pictures.PAGE_BUDGET


def test_no_image_at_all_still_makes_a_page(write):
    page = write(pairs=[])
    assert page.cards == [] and 'id="pairs"' not in page.html


def test_one_pair_makes_a_page(write):
    page = write(make_table(["only"]), make_pairs(["only"]))
    assert len(page.cards) == 1
    assert not any("nan" in text for tag in ("td", "div", "span", "b") for text in page.texts[tag])


def test_numbers_as_names_are_text(write):
    page = write(make_table([12, 7]), make_pairs(["12", "7"]))
    assert page.html.count('href="#pair-') == 2


def test_unknown_columns_are_shown_without_an_arrow(write):
    table = make_table()
    table["hausdorff"] = 0.123456
    page = write(table)
    assert page.columns[-1] == "hausdorff"
    assert page.column("hausdorff")[0]["text"] == "0.1235"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"qabf": [1.0]}), "report.html: expected a table with the column 'name', found qabf"),
        (pd.DataFrame({"name": ["mean"]}), "report.html: expected a table with at least one pair"),
    ],
)
def test_bad_tables_are_refused(tmp_path, table, message):
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / "report.html", table, [], "Run", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"aligned": np.zeros((80, 64))},
            "pair case 2: expected Aligned of 64 x 80 like Fixed, found 80 x 64",
        ),
        (
            {"fused": np.zeros((1, 64, 80))},
            r"pair case 2: expected Fused of shape \(H, W\).*found \(1, 64, 80\)",
        ),
        ({"extra": {"Gate": np.zeros(5)}}, r"pair case 2: expected Gate of shape"),
    ],
)
def test_bad_images_are_refused_and_an_earlier_report_stays(tmp_path, change, message):
    path = tmp_path / "report.html"
    path.write_text("earlier")
    with pytest.raises(ValueError, match=message):
        write_report(path, make_table(), [make_pairs()[0]._replace(**change)], "Run", {})
    assert path.read_text() == "earlier"


def test_what_the_page_is_for_and_how_it_was_made_stand_at_its_head(write):
    page = write(notes={"made": "2026-01-02 03:04", "command": "EDARFusion_test_val.py --output 'a b'"})
    assert "For research only, not for clinical use." in page.texts["p"]
    assert "EDARFusion_test_val.py --output 'a b'" in page.texts["code"]
    assert "2026-01-02 03:04" in page.texts["dd"]


def test_colours_of_a_map_are_explained(write, tmp_path):
    pair = make_pairs(["case 2"])[0]._replace(extra={"Gate": np.ones((64, 80, 3))})
    scale = ColorScale("0", "1", "weight", ["#000000", "#ffffff"])
    write_report(tmp_path / "a.html", make_table(), [pair], "Run", scales={"Gate": scale})
    actual = re.findall(r'id="scales">(.*?)</script>', (tmp_path / "a.html").read_text())
    assert json.loads(actual[0])["Gate"] == scale._asdict()


def test_colours_of_one_pair_may_have_a_scale_of_their_own(tmp_path):
    scale = ColorScale("0", "1", "tracer, hot", ["#000000", "#ffffff"])
    pairs = make_pairs(["case 2", "case 10"])
    write_report(tmp_path / "a.html", make_table(), [pairs[0]._replace(scales={"Fused": scale}), pairs[1]], "Run")
    actual = re.findall(r"data-scales='(.*?)'", (tmp_path / "a.html").read_text())
    assert [json.loads(text) for text in actual] == [{"Fused": scale._asdict()}]


def test_one_page_leads_to_the_reports_of_all_modalities(tmp_path):
    tables = {"CT": make_table().iloc[:-1], "PET": make_table(label=False).iloc[:2]}
    tables["PET"]["hausdorff"] = [0.5, 0.7]
    write_index(tmp_path / "report.html", tables, "Results", {"made": "today"}, earlier={"PET"})
    page = Page((tmp_path / "report.html").read_text())
    assert [link for link in page.links if link.endswith("report.html")] == ["CT/report.html", "PET/report.html"] * 2
    cells = {row[0]["text"].split()[0].split(",")[0]: [cell["text"] for cell in row[1:]] for row in page.rows}
    assert cells["RMSE"] == ["38.75 → 31.50", "–"] and cells["hausdorff"] == ["–", "0.6000"]
    assert cells["Referencewhat"] == ["label", "aligned"]
    assert [text for text in page.texts["a"] if "pairs" in text] == ["CT, 4 pairs", "PET, 2 pairs of an earlier run"]
    assert "For research only, not for clinical use." in page.texts["p"]


# ---- in a browser ----


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """One headless Chromium for all tests of this file; without it they skip, or fail where CI is set."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver and find_spec("selenium")):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("chromium, chromedriver and selenium are needed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    flags = (
        "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
        "disable-component-update disable-sync"
    )
    for flag in flags.split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    table = make_table()
    table.loc[1, "qabf"] = np.nan
    notes = {"Checkpoint": "checkpoints/" + "a_rather_long_file_name_" * 4 + ".safetensors"}
    write_report(path, table, make_pairs(), "CT and MRI", notes)
    return path


@pytest.fixture
def browser(chromium, page_file):
    """The report, freshly opened 1280 pixels wide; no test may leave an error in the console."""
    resize(chromium, 1280)
    chromium.get(page_file.as_uri())
    yield chromium
    assert chromium.get_log("browser") == []


def resize(browser, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def find(browser, selector):
    return browser.find_element("css selector", selector)


def point_at(browser, element):
    """Scroll an element to the middle, let the scrolling end, as it hides what pointing has brought up, and point."""
    from selenium.webdriver import ActionChains

    browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", element)
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    ActionChains(browser).move_to_element(element).perform()


def wait_for(browser, actual, expected):
    """Wait until `found()` gives what is expected; the browser draws when it finds the time."""
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait

    try:
        WebDriverWait(browser, 10).until(lambda _: actual() == expected)
    except TimeoutException:
        assert actual() == expected


def open_card(browser, number=0):
    """Scroll to a pair and wait until its images are drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    script = "arguments[0].scrollIntoView({behavior: 'instant', block: 'start'})"
    browser.execute_script(script, find(browser, f"#pair-{number}"))
    WebDriverWait(browser, 10).until(
        lambda _: find(browser, f"#pair-{number}").get_attribute("data-ready") == ""
    )
    return f"#pair-{number}"


def press(browser, *keys):
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def table_column(browser, index):
    script = """return [...document.querySelectorAll('tbody tr, tfoot tr')]
        .map(row => row.cells[arguments[0]].textContent)"""
    return browser.execute_script(script, index)


def shown_before(browser, card):
    """Where the line stands, in percent from the left; the picture from before must end there."""
    script = """const find = selector => document.querySelector(arguments[0] + selector);
        const box = selector => find(selector).getBoundingClientRect();
        const stage = box(" .slider"), line = box(" .handle");
        return 100 * (line.x + line.width / 2 - stage.x) / stage.width"""
    line = browser.execute_script(script, card)
    clip = find(browser, card + " .old").value_of_css_property("clip-path")
    cut = float(re.match(r"inset\(0px (?:calc\()?([\d.]+)%", clip)[1])
    assert cut == pytest.approx(100 - line, abs=0.1)
    return line


def test_slider_moves_with_the_mouse(browser):
    from selenium.webdriver import ActionChains

    slider = find(browser, open_card(browser) + " .slider input")
    quarter = slider.size["width"] // 4
    ActionChains(browser).move_to_element(slider).click_and_hold().move_by_offset(
        quarter, 0
    ).release().perform()
    wait_for(browser, lambda: abs(int(slider.get_property("value")) - 75) <= 2, True)
    assert abs(shown_before(browser, "#pair-0") - 75) <= 2


def test_slider_moves_with_the_keyboard_and_says_where_it_is(browser):
    from selenium.webdriver import Keys

    slider = find(browser, open_card(browser, 1) + " .slider input")
    assert slider.accessible_name.startswith("case 10: overlay")
    browser.execute_script("arguments[0].focus()", slider)
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert slider.get_property("value") == "52"
    assert slider.get_attribute("aria-valuetext") == "52 % before, 48 % after"
    press(browser, Keys.HOME)
    assert shown_before(browser, "#pair-1") == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize(("layer", "view"), [("old", "Moving"), ("new", "Aligned")])
def test_overlay_has_the_fixed_image_in_red_and_the_other_in_green(browser, page_file, layer, view):
    card = open_card(browser, 3)
    pixel = "return [...arguments[0].getContext('2d').getImageData(7, 5, 1, 1).data]"
    drawn = browser.execute_script(pixel, find(browser, f"{card} .{layer}"))
    pair = make_pairs()[3]
    expected = [round(255 * float(image[5, 7])) for image in (pair.fixed, getattr(pair, view.lower()))]
    assert np.abs(np.subtract(drawn, [*expected, 0, 255])).max() <= 1


def test_overlay_colours_can_be_changed_for_all_pairs(browser):
    card = open_card(browser)
    browser.execute_script("document.querySelector('#overlay input[value=orange-blue]').click()")
    pixel = "return [...arguments[0].getContext('2d').getImageData(7, 5, 1, 1).data]"
    fixed, moving = (float(255 * image[5, 7]) for image in make_pairs()[0][1:3])
    expected = [fixed, (fixed + moving) / 2, moving, 255]
    assert (
        np.abs(np.subtract(browser.execute_script(pixel, find(browser, f"{card} .old")), expected)).max() <= 1
    )


def test_switch_shows_one_image_at_a_time_by_mouse_and_keyboard(browser):
    from selenium.webdriver import Keys

    card = open_card(browser)

    def shown():
        pictures = browser.find_elements("css selector", card + " .images img")
        return [picture.get_attribute("alt") for picture in pictures if picture.is_displayed()]

    assert shown() == ["Fused image of case 2"]
    browser.find_elements("css selector", card + " .views .choice label")[2].click()
    assert shown() == ["Moving image of case 2"]
    press(browser, Keys.ARROW_RIGHT)
    assert shown() == ["Aligned image of case 2"]
    press(browser, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert shown() == ["Fixed image of case 2"]


def test_table_sorts_by_click_and_turns_round(browser):
    head = find(browser, "th[data-column=qcv]")
    head.find_element("css selector", "button").click()
    column = table_column(browser, 5)
    assert column[:-1] == ["9.5", "80.0", "500.0", "1200.0"]  # lower is better: the best first, as numbers
    assert head.get_attribute("aria-sort") == "ascending"
    head.find_element("css selector", "button").click()
    assert table_column(browser, 5)[:-1] == ["1200.0", "500.0", "80.0", "9.5"]
    assert table_column(browser, 0)[-1] == "mean"


def test_table_sorts_by_keyboard_with_missing_values_last(browser):
    from selenium.webdriver import Keys

    head = find(browser, "th[data-column=qabf]")
    browser.execute_script("arguments[0].focus()", head.find_element("css selector", "button"))
    press(browser, Keys.ENTER)
    assert table_column(browser, 4)[:-1] == ["0.380", "0.300", "0.200", "–"]
    press(browser, Keys.SPACE)
    assert table_column(browser, 4)[:-1] == ["0.200", "0.300", "0.380", "–"]
    assert find(browser, "#sorted").get_property("textContent") == "Sorted by Q^AB/F , ascending"


def test_names_sort_naturally(browser):
    find(browser, "tr.names th:first-child button").click()
    assert table_column(browser, 0) == ["<b>bold</b></script>", "case 1", "case 2", "case 10", "mean"]


def test_pointing_at_a_pair_lights_it_in_every_plot(browser):
    point_at(browser, find(browser, "tbody tr[data-i='3'] td"))
    script = "return [...document.querySelectorAll('.dot.lit')].map(dot => dot.dataset.i)"
    wait_for(browser, lambda: set(browser.execute_script(script)), {"3"})
    assert len(browser.execute_script(script)) >= len(browser.find_elements("css selector", ".chart"))


def test_dots_tell_their_value_and_lead_to_their_pair(browser):
    dot = find(browser, "figure[data-column=rmse] .dot:not(.old)[data-i='1']")
    point_at(browser, dot)
    wait_for(browser, lambda: find(browser, "#tip").text.split(), ["case", "10", "45.00", "→", "31.00"])
    dot.click()
    wait_for(browser, lambda: browser.current_url.endswith("#pair-1"), True)


def test_images_are_drawn_only_when_they_come_near(browser):
    assert find(browser, "#pair-3").get_attribute("data-ready") is None
    open_card(browser, 3)
    assert find(browser, "#pair-3").get_attribute("data-ready") == ""


def test_every_pair_is_drawn_before_the_page_is_printed_as_wide_as_paper(browser):
    browser.execute_script("window.print = () => { window.drawn = document.querySelectorAll('[data-ready]').length; }")
    find(browser, "#print").click()
    wait_for(browser, lambda: browser.execute_script("return window.drawn"), len(NAMES))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        resize(browser, 1047)  # A4, less its margins
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 1047
        shown = "return [...document.querySelectorAll('nav, .tool, .handle')].some(x => x.checkVisibility())"
        assert not browser.execute_script(shown)
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_printing_waits_for_pairs_that_are_being_drawn(browser):
    browser.execute_script("""
        window.print = () => { window.drawn = document.querySelectorAll('[data-ready]').length; };
        cards.forEach((_, card) => begin(card));
        document.querySelector('#print').click();
    """)
    wait_for(browser, lambda: browser.execute_script("return window.drawn ?? null") is not None, True)
    assert browser.execute_script("return window.drawn") == len(NAMES)


def test_a_plot_is_gone_through_by_keyboard(browser):
    from selenium.webdriver import Keys

    plot = find(browser, "figure[data-column=rmse] .plot")
    assert plot.accessible_name.startswith("RMSE of each pair, 38.75 → 31.50, 3 of 4 better")
    browser.execute_script("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", plot)
    browser.execute_script("arguments[0].focus()", plot)
    press(browser, Keys.END)
    said = find(browser, "#pointed")
    wait_for(browser, lambda: said.get_property("textContent").split(), ["case", "1", "50.00", "→", "33.00"])
    press(browser, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    wait_for(browser, lambda: said.get_property("textContent").split()[:2], ["case", "10"])
    press(browser, Keys.ENTER)
    wait_for(browser, lambda: browser.current_url.endswith("#pair-1"), True)


def test_pairs_stand_worst_first_where_asked(browser):
    from selenium.webdriver.support.ui import Select

    def order():
        return browser.execute_script("return [...document.querySelectorAll('.pair h3')].map(h => h.textContent)")

    assert order() == NAMES
    chooser = Select(find(browser, "#order"))
    assert [option.text for option in chooser.options][:2] == ["as in the table of metrics", "worst RMSE first"]
    chooser.select_by_value("rmse")
    assert order() == NAMES[::-1]
    chooser.select_by_value("qabf")  # higher is better; a pair without a value is last
    assert order() == ["<b>bold</b></script>", "case 2", "case 1", "case 10"]
    text = find(browser, "#ordered").get_property("textContent")
    assert text == f"Pairs in order: worst {METRICS['qabf'].text} first"
    chooser.select_by_value("")
    assert order() == NAMES


def test_both_pictures_zoom_to_one_place(browser):
    from selenium.webdriver import Keys

    card = open_card(browser)
    zoom = find(browser, card + " .zoom input")
    assert zoom.accessible_name == "case 2: zoom"
    browser.execute_script("arguments[0].focus()", zoom)
    press(browser, *[Keys.ARROW_RIGHT] * 6)
    browser.execute_script("arguments[0].focus()", find(browser, card + " .images"))
    press(browser, *[Keys.ARROW_LEFT] * 30)

    def seen(stage):
        """Left and right end of what is seen of the layer, as shares of its width."""
        script = """return [arguments[0], arguments[0].querySelector('.layer')].map(
            element => element.getBoundingClientRect().toJSON())"""
        outer, inner = browser.execute_script(script, find(browser, f"{card} {stage}"))
        return [(x - inner["left"]) / inner["width"] for x in (outer["left"], outer["right"])]

    assert seen(".images") == seen(".slider") == pytest.approx([0, 1 / 4], abs=0.01)
    # The line cuts the picture where it stands: in the middle of what is seen.
    clip = find(browser, card + " .old").value_of_css_property("clip-path")
    assert float(re.match(r"inset\(0px (?:calc\()?([\d.]+)%", clip)[1]) == pytest.approx(100 - 12.5, abs=0.1)
    assert browser.execute_script("return scrollX") == 0


def test_choosing_an_image_moves_nothing_and_the_fixed_one_shines_through(browser):
    from selenium.webdriver import Keys

    card = open_card(browser)
    script = """return [scrollY, ...[...document.querySelectorAll(arguments[0] + ' .stage')].map(stage => {
        const box = stage.getBoundingClientRect(); return [box.x, box.y, box.width, box.height]; })]"""
    before = browser.execute_script(script, card)
    for label in browser.find_elements("css selector", card + " .views .choice label"):
        label.click()
        assert browser.execute_script(script, card) == before
    assert "url(" in find(browser, card + " .images .layer").value_of_css_property("background-image")
    opacity = find(browser, card + " .opacity input")
    browser.execute_script("arguments[0].focus()", opacity)
    press(browser, Keys.HOME, Keys.ARROW_RIGHT)
    (shown,) = [img for img in browser.find_elements("css selector", card + " .images img") if img.is_displayed()]
    assert shown.value_of_css_property("opacity") == "0.05"
    strength = find(browser, card + " .strength input")
    browser.execute_script("arguments[0].focus()", strength)
    press(browser, Keys.HOME)
    pixel = "return [...arguments[0].getContext('2d').getImageData(7, 5, 1, 1).data]"
    assert browser.execute_script(pixel, find(browser, card + " .old"))[1] == 0


@pytest.mark.parametrize("width", [400, 640, 900, 1220])
def test_a_wide_table_scrolls_within_itself_beside_the_names(browser, tmp_path, width):
    table = make_table()
    for number in range(20):
        table[f"metric{number}"] = 1000.0 + number
    write_report(tmp_path / "report.html", table, make_pairs(), "CT and MRI")
    resize(browser, width)
    browser.get((tmp_path / "report.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    wait_for(browser, lambda: find(browser, "#wide").is_displayed(), True)
    browser.execute_script("document.querySelector('.scroller').scrollLeft = 1e6")
    last, name, frame = browser.execute_script("""return ['tbody tr td:last-child', 'tbody tr th', '.scroller'].map(
        s => document.querySelector(s).getBoundingClientRect().toJSON())""")
    assert frame["left"] <= name["left"] < name["right"] < last["left"] < last["right"] <= frame["right"]
    cut = "return [...document.querySelectorAll('tbody th, td')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert browser.execute_script(cut) == 0
    wait_for(browser, lambda: "more" in find(browser, ".frame").get_attribute("class"), False)


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_above_the_reports_can_be_read(browser, tmp_path, width):
    write_index(tmp_path / "report.html", {name: make_table().iloc[:-1] for name in ("CT", "PET", "SPECT")}, "Results")
    resize(browser, width)
    browser.get((tmp_path / "report.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    lines = """return [...document.querySelectorAll('tbody tr:not(:last-child)')].map(row => {
        const name = row.cells[0].getBoundingClientRect(), style = getComputedStyle(row.cells[0]);
        return name.height / parseFloat(style.fontSize); })"""
    assert max(browser.execute_script(lines)) < 5  # no name is broken into letters


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_and_text_can_be_read(browser, width, scheme):
    resize(browser, width)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    for number in range(len(NAMES)):
        open_card(browser, number)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    # A tile or heading whose text is wider than itself would be cut off.
    cut = """return [...document.querySelectorAll('.tile, .tile *, h1, h3, .chart, .choice, .facts')]
        .filter(e => !e.closest('.unseen') && e.clientWidth && e.scrollWidth > e.clientWidth + 1)
        .map(e => e.outerHTML)"""
    assert browser.execute_script(cut) == []
    sizes = """return [...document.querySelectorAll('main *:not(svg *, sup, sub)')]
        .map(e => parseFloat(getComputedStyle(e).fontSize))"""
    assert min(browser.execute_script(sizes)) >= 11
    paper, ink = (
        sum(map(float, re.findall(r"[\d.]+", find(browser, "body").value_of_css_property(name))[:3]))
        for name in ("background-color", "color")
    )
    assert (paper > ink) == (scheme == "light") and abs(paper - ink) > 500
