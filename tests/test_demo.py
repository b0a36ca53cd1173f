"""The page on which one draws a digit: how drawings are prepared, what it shows in a browser, and how it is built."""

import functools
import http.server
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from cases import abstract, randomised
from pages import DIGITS, ROOT
from sklearn.datasets import load_digits

from repmlp_jax import PureMLP, fuse_params, save_model
from repmlp_jax.data import digits

DEMO = ROOT / "docs" / "demo"
PREPROCESSING = dict(mean=digits.MEAN, std=digits.STD, class_names=digits.CLASS_NAMES)
# On a pad of 100×100; as one draws them by hand, in several moves.
SEVEN = [[(25, 20), (50, 19), (74, 20), (62, 45), (50, 68), (44, 85)]]
ZERO = [[(50 - 22 * np.sin(angle), 50 - 36 * np.cos(angle)) for angle in np.linspace(0, 2 * np.pi, 20)]]


@functools.cache
def build():
    """The module docs/demo/build.py."""
    spec = importlib.util.spec_from_file_location("build_demo", DEMO / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# How drawings are prepared.


def pixels_of(drawings, folder):
    """What digit.js makes of drawings; "example" stands for the page's ten."""
    if shutil.which("node") is None:
        pytest.skip("needs Node.js, which runs the page's JavaScript: apt-get install nodejs")
    for name in ("digit.js", "examples.js"):
        shutil.copy(DEMO / "page" / name, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "run.js").write_text(
        'import { pixelsOf } from "./digit.js"; import { EXAMPLES } from "./examples.js";'
        f"const drawings = {'EXAMPLES' if drawings == 'examples' else json.dumps(drawings)};"
        "console.log(JSON.stringify(drawings.map(pixelsOf)));"
    )
    printed = subprocess.run(["node", folder / "run.js"], capture_output=True, text=True, check=True).stdout
    return np.array(json.loads(printed)).reshape(-1, 8, 8)


def test_drawn_digits_are_like_those_of_the_dataset(tmp_path):
    drawn, data = pixels_of("examples", tmp_path), load_digits()
    distances = np.square(drawn[:, None] - data.images).sum((2, 3))
    np.testing.assert_array_equal(data.target[distances.argmin(1)], np.arange(10))
    ink = drawn.sum((1, 2))
    assert np.all(abs(ink - data.images.sum((1, 2)).mean()) < 10)
    assert drawn.min() >= 0
    assert drawn.max() == 16
    assert (drawn.sum(2) > 0).all()  # 32 bits high, as all of the dataset
    assert not drawn[:, :, [0, 7]].any()  # and 20 wide


def test_where_how_large_and_how_slanted_a_digit_is_drawn_does_not_matter(tmp_path):
    def moved(scale, right, down, slant=0.0):
        return [[(scale * (x - slant * y) + right, scale * y + down) for x, y in stroke] for stroke in SEVEN]

    plain, small, slanted = pixels_of([moved(1, 0, 0), moved(0.1, 70, 5), moved(1, 0, 0, 0.3)], tmp_path)
    np.testing.assert_array_equal(plain, small)
    assert abs(plain - slanted).max() <= 4


def test_a_dot_and_a_dash_are_drawings(tmp_path):
    dot, dash = pixels_of([[[(3, 3)]], [[(0, 50), (100, 50)]]], tmp_path)
    np.testing.assert_array_equal(dot, dot[::-1, ::-1])
    assert dot.sum() > 0
    assert dash.sum() > 0


# What the page shows in a browser.


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory):
    """The page, built as the docs say."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm: apt-get install npm")
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    out = tmp_path_factory.mktemp("demo") / "built"
    built = subprocess.run([sys.executable, DEMO / "build.py", "--out", out], capture_output=True, text=True)
    if "npm cannot get" in built.stderr:
        pytest.skip(built.stderr)
    assert built.returncode == 0, built.stderr
    return out


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """That of `python -m http.server`."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(page_folder):
    """Where the page is served."""
    with http.server.ThreadingHTTPServer(
        ("localhost", 0), functools.partial(QuietHandler, directory=page_folder)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        yield (browser := started.chromium.launch(executable_path=chromium, args=["--no-sandbox"]))
        browser.close()


@pytest.fixture
def open_page(browser, address):
    """Opens the page in a new window; at the end there was neither an error nor a request to another server."""
    complaints, windows = [], []

    def open_page(**options):
        windows.append(browser.new_context(**options))
        page = windows[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
        page.on("request", lambda request: complaints.extend([request.url] * (not request.url.startswith(address))))
        page.goto(address)
        wait(page)
        return page

    yield open_page
    for window in windows:
        window.close()
    assert not [text for text in complaints if not text.startswith("data:")]


def wait(page):
    page.wait_for_selector("#reading[aria-busy=false]")


def on_pad(page, strokes):
    """Strokes as positions in the window."""
    pad = page.locator("#pad").bounding_box()
    return [[(pad["x"] + x * pad["width"] / 100, pad["y"] + y * pad["height"] / 100) for x, y in s] for s in strokes]


def draw(page, strokes):
    page.click("#clear")
    for first, *others in on_pad(page, strokes):
        page.mouse.move(*first)
        page.mouse.down()
        for point in others:
            page.mouse.move(*point, steps=3)
        page.mouse.up()
    wait(page)


def shares(page):
    """The probability of each digit, in per cent."""
    return [float(text.rstrip(" %")) for text in page.locator("#classes span").all_inner_texts()]


@pytest.mark.slow
@pytest.mark.parametrize(("strokes", "digit"), [(SEVEN, 7), (ZERO, 0)], ids=["7", "0"])
def test_a_drawn_digit_is_read_by_both_forms(strokes, digit, open_page):
    page = open_page()
    draw(page, strokes)
    found = {}
    for form in ("trained", "fused"):
        page.check(f"input[value={form}]")
        assert page.inner_text("#answer") == f"This is a {digit}"
        found[form] = shares(page)
    assert found["trained"] == pytest.approx(found["fused"], abs=0.1)  # as rounded
    assert np.argmax(found["fused"]) == digit
    times = page.locator("#times span").all_inner_texts()
    assert len(times) == 2
    assert all(float(text.removesuffix(" ms")) > 0 for text in times)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_digit_is_drawn_by_a_finger_on_a_phone(scheme, open_page):
    page = open_page(viewport=dict(width=390, height=700), has_touch=True, is_mobile=True, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.tap("#clear")
    assert page.inner_text("#answer") == "Draw a digit"
    touch = page.context.new_cdp_session(page)
    for first, *others in on_pad(page, SEVEN):
        for kind, points in [("touchStart", [first]), *(("touchMove", [point]) for point in others), ("touchEnd", [])]:
            points = [dict(x=x, y=y) for x, y in points]
            touch.send("Input.dispatchTouchEvent", dict(type=kind, touchPoints=points))
    wait(page)
    assert page.inner_text("#answer") == "This is a 7"
    assert page.evaluate("scrollY") == 0  # the finger drew, and did not scroll


@pytest.mark.slow
def test_in_a_frame_it_is_as_dark_as_the_site_around_it(open_page):
    page = open_page(color_scheme="dark")
    page.evaluate("document.body.innerHTML = `<iframe src='${location.href}'></iframe>`")
    (frame,) = page.main_frame.child_frames
    frame.wait_for_selector("#reading[aria-busy=false]")
    for site, paper in [("default", (255, 255, 255)), ("slate", (30, 33, 41)), ("default", (255, 255, 255))]:
        page.evaluate(f"document.body.dataset.mdColorScheme = '{site}'")
        assert frame.evaluate("getComputedStyle(document.body).backgroundColor") == f"rgb{paper}"


@pytest.mark.slow
def test_all_of_it_is_done_by_the_keyboard(open_page):
    page = open_page()
    page.keyboard.press("5")
    wait(page)
    assert page.inner_text("#answer") == "This is a 5"
    page.focus("input[value=fused]")
    page.keyboard.press("ArrowLeft")
    assert page.is_checked("input[value=trained]")
    page.focus("#row")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    seen = page.locator("#kernels svg").first
    assert seen.get_attribute("aria-label") == "FC3 as trained: the weights that lead to row 1, column 2"


@pytest.mark.slow
def test_a_pixel_that_is_clicked_shows_the_weights_that_lead_to_it(open_page, page_folder):
    page = open_page()
    panels = page.locator("#kernels svg")
    side = panels.nth(2).bounding_box()["width"] / 8
    panels.nth(2).click(position=dict(x=6.5 * side, y=5.5 * side))
    about = json.loads((page_folder / "about.json").read_text())
    shown = page.evaluate(
        "[...document.querySelectorAll('#kernels svg')].map(svg => [...svg.querySelectorAll('[fill]')].map(r => "
        "[r.getAttribute('x'), r.getAttribute('y'), r.getAttribute('fill')]))"
    )
    for part, squares in zip(("trained", "convolutions", "fused"), shown, strict=True):
        kernel = np.array(about["kernels"][part])[:, :, 1, 2]  # row 5, column 6 in partitions of 4×4
        assert [(int(x), int(y)) for x, y, _ in squares] == [(4 + x, 4 + y) for y in range(4) for x in range(4)]
        lightness = [-1 if fill == about["zero"] else about["colours"].index(fill) for _, _, fill in squares]
        order = np.argsort(kernel.ravel(), kind="stable")
        assert np.all(np.diff(np.array(lightness)[order]) >= 0)


# How it is built.


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Saved models: one that the page takes, with random weights, and others that it refuses."""
    folder = tmp_path_factory.mktemp("models")
    net = randomised(abstract(PureMLP, **DIGITS))
    save_model(folder / "digits", net, preprocessing=PREPROCESSING)
    save_model(folder / "fused", fuse_params(net), preprocessing=PREPROCESSING)
    save_model(folder / "nameless", net)
    save_model(folder / "large", randomised(abstract(PureMLP, **DIGITS | dict(image_size=(16, 16)))))
    save_model(
        folder / "convolutions",
        randomised(abstract(PureMLP, **DIGITS | dict(conv_kernels=()))),
        preprocessing=PREPROCESSING,
    )
    return folder


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("fused", "is fused: its kernel no longer holds the separate parts. Pass the trained model"),
        ("nameless", r"for images \(8, 8, 1\) and classes None; the page needs one for images \(8, 8, 1\)"),
        ("large", r"holds a PureMLP for images \(16, 16, 1\)"),
        ("convolutions", "this block has no convolutions"),
        ("missing", "holds no model.json"),
    ],
)
def test_models_that_the_page_cannot_show_are_refused(model, message, models, tmp_path):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        build().build(tmp_path / "out", models / model)
    assert not list(tmp_path.iterdir())


def test_npm_is_needed(models, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"npm, which brings onnxruntime-web@\S+, is not installed"):
        build().build(tmp_path / "out", models / "digits")
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network: no address' >&2; exit 1")
    npm.chmod(0o755)
    with pytest.raises(ValueError, match=r"npm cannot get onnxruntime-web@\S+: npm error network: no address"):
        build().build(tmp_path / "out", models / "digits")
    assert list(tmp_path.iterdir()) == [npm]


@pytest.mark.parametrize("content", ["notes.txt", "about.json", None], ids=["notes", "another page", "a file"])
def test_a_folder_that_it_did_not_build_is_left_as_it_is(content, tmp_path):
    out = tmp_path / "out"
    mine = out / content if content else out
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("{}")
    with pytest.raises(FileExistsError, match=r"out is nothing that docs/demo/build\.py built, and is left as it is"):
        build().build(out)
    assert mine.read_text() == "{}"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    monkeypatch.setattr(sys, "argv", ["build.py", "--out", str(out)])
    with pytest.raises(SystemExit, match="2"):
        build().main()
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"error: {out} cannot be built: {out.parent} is not a folder that can be written; choose another"


@pytest.mark.parametrize("is_built", [True, False], ids=["built", "not built"])
def test_the_docs_show_the_page_where_it_is_built_and_else_its_picture(is_built, monkeypatch):
    pytest.importorskip("mkdocs", reason="needs the extra [docs]")
    monkeypatch.syspath_prepend(DEMO.parent)
    hooks = importlib.import_module("hooks")
    source = SimpleNamespace(src_uri="demo/index.md", abs_src_path=str(DEMO / "index.md"))
    config = SimpleNamespace(docs_dir=str(DEMO.parent))
    files = SimpleNamespace(get_file_from_path=lambda path: is_built or path != "demo/built/index.html")
    shown = hooks.on_page_markdown((DEMO / "index.md").read_text(), SimpleNamespace(file=source), config, files)
    assert ("<iframe" in shown, "page.png" in shown) == (is_built, not is_built)


@pytest.mark.slow
def test_a_page_is_built_again_with_another_model(page_folder, models, tmp_path):
    out = tmp_path / "built"
    shutil.copytree(page_folder, out)
    before = (out / "fused.onnx").read_bytes()
    build().build(out, models / "digits")
    assert (out / "fused.onnx").read_bytes() != before
    assert {path.name for path in out.iterdir()} == {path.name for path in page_folder.iterdir()}
