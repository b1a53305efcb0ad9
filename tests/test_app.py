"""app.py: the page in a real browser, and its files; needs requirements-app.txt, and Chromium for most."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import EDARFusion_test_val
from evaluation.map_styles import MAPS
from tests.examples import ONE_THREAD, REPOSITORY, SAMPLE

pytest.importorskip("gradio", reason="needs requirements-app.txt")
PATIENCE = 60
"""Seconds that anything may take on a busy machine."""

# One server and one browser for all of them.
pytestmark = pytest.mark.xdist_group("app")


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """The address of a page that is running, and the folder of its temporary files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("app")
    command = [sys.executable, "app.py", "--no-browser", "--port", str(port), "--most-slices", "2", "--most-mb", "1"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=ONE_THREAD | {"TMPDIR": str(folder)}, stdout=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    assert line.startswith(f"app: open http://127.0.0.1:{port}"), line
    yield f"http://127.0.0.1:{port}", folder
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    # Nothing of any visitor is left when the program ends.
    assert not list(folder.glob("edarfusion-*"))


@pytest.fixture
def open_page(server: tuple[str, Path], tmp_path: Path) -> Iterator[Callable[..., webdriver.Chrome]]:
    """A function that opens the page in a browser of its own; no page may write an error to its console."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("chromium and chromedriver are needed")
    pages = []

    def opened(width: int = 1280) -> webdriver.Chrome:
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
            options.add_argument(argument)
        options.add_argument(f"--user-data-dir={tmp_path / f'chromium-{len(pages)}'}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        page = webdriver.Chrome(options, webdriver.ChromeService(driver))
        pages.append(page)
        page.set_window_size(width, 1000)
        page.get(server[0])
        WebDriverWait(page, PATIENCE).until(lambda page: page.find_elements(By.ID, "run"))
        return page

    yield opened
    for page in pages:
        assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
        page.quit()


def press(page: webdriver.Chrome, text: str) -> None:
    """Press the button of this text by the keyboard alone."""
    (button,) = [button for button in page.find_elements(By.TAG_NAME, "button") if button.text.strip() == text]
    button.send_keys(Keys.ENTER)


def wait_for(page: webdriver.Chrome, selector: str) -> list:
    return WebDriverWait(page, PATIENCE).until(lambda page: page.find_elements(By.CSS_SELECTOR, selector))


def upload(page: webdriver.Chrome, *files: Path) -> None:
    """Give the fixed image, then the moving one."""
    for place, file in enumerate(files):
        count = len(page.find_elements(By.CSS_SELECTOR, ".file-preview"))
        page.find_elements(By.CSS_SELECTOR, "input[type=file]")[place].send_keys(str(file))
        WebDriverWait(page, PATIENCE).until(
            lambda page, count=count: len(page.find_elements(By.CSS_SELECTOR, ".file-preview")) > count
        )


def downloaded(page: webdriver.Chrome, folder: Path) -> zipfile.ZipFile:
    """Press the button under the results and open the archive that the browser then saves in an empty folder."""
    page.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    press(page, "Download all: images, flow, maps, table, report (zip)")
    WebDriverWait(page, PATIENCE).until(lambda _: (folder / "edarfusion.zip").exists())
    return zipfile.ZipFile(folder / "edarfusion.zip")


def requests(page: webdriver.Chrome) -> set[str]:
    """Addresses that the page has asked for over the network."""
    entries = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = {e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"}
    return {url for url in urls if url.startswith(("http", "ws"))}


def visitors(folder: Path) -> list[Path]:
    return list(folder.glob("edarfusion-*/visitors/*"))


def uploads(folder: Path, modality: str) -> list[Path]:
    """Uploaded copies of the first pair of a modality."""
    name = sorted((SAMPLE / modality / "fixed").iterdir())[0].name
    return [path for path in folder.glob(f"edarfusion-*/*/{name}") if path.is_file()]


def test_an_example_by_the_keyboard(server: tuple[str, Path], open_page: Callable, tmp_path: Path) -> None:
    page = open_page()
    press(page, "Example: PET")
    rows = wait_for(page, ".ef-table tbody tr")
    names = [row.text for row in rows]
    assert any(name.startswith("Disagreement") for name in names) and any("Folding" in name for name in names)
    # What needs the truth is not there.
    assert not any(name.startswith(("RMSE", "EPE")) for name in names)
    assert "The estimates agree to" in page.find_element(By.CSS_SELECTOR, ".ef-sure").text
    slider = page.find_element(By.CSS_SELECTOR, ".ef-slider + input")
    slider.send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    at = "return getComputedStyle(document.querySelector('.ef-slider')).getPropertyValue('--at')"
    assert page.execute_script(at) == "1%"
    # Everything of the results comes in the download.
    names = downloaded(page, tmp_path).namelist()
    expected = {"fused/simulated_096.png", "aligned/simulated_096.png", "flow/simulated_096.npy", "metrics.csv",
              "report.html", "maps/reliability/simulated_096.png"}  # fmt: skip
    assert expected <= set(names)
    # Each map that was saved is shown with what it says.
    saved = {name.split("/")[1] for name in names if name.startswith("maps/") and name.endswith(".png")}
    captions = [caption.text for caption in page.find_elements(By.CSS_SELECTOR, ".ef-row figcaption")]
    assert {MAPS[kind].meaning for kind in saved} <= set(captions)
    # Nothing leaves the machine.
    assert all(url.startswith((server[0], server[0].replace("http", "ws"))) for url in requests(page))


def test_colours_and_modality_as_in_the_test_command(open_page: Callable, tmp_path: Path) -> None:
    from PIL import Image

    pair = {role: SAMPLE / "SPECT" / role / "simulated_084.png" for role in ("fixed", "moving")}
    page = open_page()
    upload(page, *pair.values())
    (luma,) = [x for x in page.find_elements(By.CSS_SELECTOR, "input[type=radio]")
               if x.get_attribute("value") == "luma"]  # fmt: skip
    luma.send_keys(Keys.SPACE)
    press(page, "Align and fuse")
    wait_for(page, ".ef-table tbody tr")
    # Nobody has said what it is: an image in colour is taken for PET.
    assert "taken for PET, as the moving images are in colour" in page.find_element(By.ID, "results").text
    archive = downloaded(page, tmp_path)
    assert json.loads(archive.read("settings.json"))["color"] == "luma"
    # What the test command makes of the same pair with the same options.
    options = [f"--{role}={path}" for role, path in pair.items()]
    assert EDARFusion_test_val.main([*options, "--colour", "luma", "--workers", "1", f"--output={tmp_path}"]) == 0
    fused = [np.asarray(Image.open(file)) for file in
             (archive.open("fused/simulated_084.png"), tmp_path / "PET" / "fused" / "simulated_084.png")]  # fmt: skip
    np.testing.assert_array_equal(*fused)


def test_blend_changes_the_fused_picture(open_page: Callable) -> None:
    page = open_page(400)
    press(page, "Example: CT")
    wait_for(page, ".ef-table tbody tr")
    first = page.find_element(By.CSS_SELECTOR, "img[alt=Fused]").get_attribute("src")
    aligned = page.find_element(By.CSS_SELECTOR, "img[alt=Aligned]").get_attribute("src")
    (blend,) = [x for x in page.find_elements(By.CSS_SELECTOR, "input[type=range]")
                if "Blend" in (x.get_attribute("aria-label") or "")]  # fmt: skip
    blend.send_keys(Keys.END)
    moved = wait_for(page, "img[alt='Fused, blend +1.00']")[0].get_attribute("src")
    assert moved == aligned != first
    # A narrow screen needs no scrolling to the side.
    assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def test_two_visitors_get_their_own_results_and_take_them_along(
    server: tuple[str, Path], open_page: Callable, tmp_path: Path
) -> None:
    first, second = open_page(), open_page()
    for page, modality in ((first, "CT"), (second, "SPECT")):
        name = sorted((SAMPLE / modality / "fixed").iterdir())[0].name
        upload(page, *(SAMPLE / modality / role / name for role in ("fixed", "moving")))
        (choice,) = [x for x in page.find_elements(By.CSS_SELECTOR, "input[type=radio]")
                     if x.get_attribute("value") == modality]  # fmt: skip
        choice.send_keys(Keys.SPACE)
    for page in (first, second):
        press(page, "Align and fuse")
    sources = []
    for page in (first, second):
        wait_for(page, ".ef-table tbody tr")
        sources.append(page.find_element(By.CSS_SELECTOR, "img[alt=Fixed]").get_attribute("src"))
    assert sources[0] != sources[1]
    before, own = visitors(server[1]), uploads(server[1], "CT")
    assert len(before) >= 2 and own
    first.get("about:blank")
    deadline = time.time() + PATIENCE
    while (len(visitors(server[1])) >= len(before) or uploads(server[1], "CT")) and time.time() < deadline:
        time.sleep(0.5)
    assert len(visitors(server[1])) < len(before) and not uploads(server[1], "CT")
    assert uploads(server[1], "SPECT")
    # The other one keeps what is his.
    assert "fused/simulated_072.png" in downloaded(second, tmp_path).namelist()


def test_progress_is_seen_and_a_later_fault_hides_earlier_results(open_page: Callable) -> None:
    page = open_page()
    # What the page shows for a moment is kept.
    page.execute_script(
        "window.shown = ''; new MutationObserver(() => {"
        "  window.shown += [...document.querySelectorAll('.progress-level-inner, .meta-text')].map(x => x.innerText)"
        "}).observe(document.body, {subtree: true, childList: true, characterData: true})"
    )
    press(page, "Example: CT")
    wait_for(page, ".ef-table tbody tr")
    assert "Aligning and fusing" in page.execute_script("return window.shown")
    assert page.find_element(By.CSS_SELECTOR, "[role=status]").text == "Aligned and fused: CT, 1 slice."
    page.find_elements(By.CSS_SELECTOR, "button[aria-label=Clear]")[0].click()
    press(page, "Align and fuse")
    assert "found none" in wait_for(page, "[data-testid=toast-body]")[0].text
    assert not any(element.is_displayed() for element in page.find_elements(By.ID, "results"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no image", "bad.png: expected an image (PNG"),
        ("nothing", "expected a fixed image (MRI), found none"),
        ("large", "exceed"),
    ],
)
def test_bad_input_is_told_in_words(open_page: Callable, tmp_path: Path, fault: str, message: str) -> None:
    page = open_page()
    good = SAMPLE / "CT" / "moving" / "simulated_070.png"
    bad = tmp_path / "bad.png"
    if fault == "no image":
        bad.write_bytes(b"no image")
    elif fault == "large":
        bad.write_bytes(os.urandom(1_200_000))
        page.find_elements(By.CSS_SELECTOR, "input[type=file]")[0].send_keys(str(bad))
    if fault == "no image":
        upload(page, bad, good)
    if fault != "large":
        press(page, "Align and fuse")
    text = WebDriverWait(page, PATIENCE).until(
        lambda page: page.find_element(By.CSS_SELECTOR, "[data-testid=toast-body]").text
    )
    assert message in text
    assert "Traceback" not in page.page_source and "/tmp" not in text
    page.get_log("browser")  # the browser itself notes an upload that was refused


def test_images_of_unequal_size_are_brought_to_one(open_page: Callable, tmp_path: Path) -> None:
    from PIL import Image

    files = {role: SAMPLE / "CT" / role / "simulated_070.png" for role in ("fixed", "moving")}
    small = tmp_path / "small.png"
    Image.open(files["moving"]).resize((160, 160)).save(small)
    page = open_page()
    upload(page, files["fixed"], small)
    press(page, "Align and fuse")
    wait_for(page, ".ef-table tbody tr")
    assert "brought to its frame by the heads' extents" in page.find_element(By.ID, "results").text


def test_volumes_have_a_slider_and_a_limit(open_page: Callable, tmp_path: Path) -> None:
    import nibabel as nib
    import numpy as np

    from utils.imaging.images import read_image

    slices = {role: read_image(SAMPLE / "CT" / role / "simulated_070.png")[::2, ::2] for role in ("fixed", "moving")}
    for count in (2, 3):
        for role, image in slices.items():
            volume = np.stack([image * (1 - 0.1 * number) for number in range(count)], axis=2)
            nib.save(nib.Nifti1Image(volume.astype(np.float32), np.eye(4)), tmp_path / f"{role}{count}.nii")
    page = open_page()
    upload(page, tmp_path / "fixed2.nii", tmp_path / "moving2.nii")
    press(page, "Align and fuse")
    wait_for(page, ".ef-table tbody tr")
    sliders = [x for x in page.find_elements(By.CSS_SELECTOR, "input[type=range]") if x.is_displayed()]
    (chosen,) = [x for x in sliders if "Slice" in (x.get_attribute("aria-label") or "")]
    first = page.find_element(By.CSS_SELECTOR, "img[alt=Fixed]").get_attribute("src")
    chosen.send_keys(Keys.END)
    WebDriverWait(page, PATIENCE).until(
        lambda page: page.find_element(By.CSS_SELECTOR, "img[alt=Fixed]").get_attribute("src") != first
    )
    other = open_page()
    upload(other, tmp_path / "fixed3.nii", tmp_path / "moving3.nii")
    press(other, "Align and fuse")
    assert "expected at most 2 slices, found 3" in wait_for(other, "[data-testid=toast-body]")[0].text
