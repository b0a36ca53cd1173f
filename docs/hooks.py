"""What MkDocs adds to the pages: pictures, tables made from the code, formulas, and files of the repository."""

import html
import io
import posixpath
import re
import tomllib
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pictures import PICTURES
from tables import TABLES

LINK = re.compile(r"(?<=\]\()((?:\.\./)+[^)#\s]+)")
DRAWING = re.compile(r'<p><img [^>]*src="[^"]*?([\w-]+\.svg)"[^>]*></p>')
# What pymdownx.arithmatex makes of $…$ and $$…$$.
FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL
)
# Pages that lie outside of the docs.
OUTSIDE = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
# The page of docs/demo: where it was built, it stands in the place of its picture.
DEMO = "demo/built/index.html"
PICTURE_OF_DEMO = re.compile(r"!\[[^\]]*\]\(page\.png\)")
FRAME = '<iframe class="demo" src="built/index.html" title="Draw a digit"></iframe>'


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Sets the addresses of the repository and of the site, if pyproject.toml has one."""
    settings = tomllib.loads(
        (Path(config.docs_dir).parent / "pyproject.toml").read_text()
    )
    repository = settings["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]
    if repository:
        *_, owner, name = repository.rstrip("/").split("/")
        config.repo_url = repository
        config.site_url = f"https://{owner.lower()}.github.io/{name}/"
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Draws the pictures, and adds the pages that lie outside of the docs."""
    for name, draw in PICTURES.items():
        picture = io.BytesIO()
        draw().savefig(picture, format="png", dpi=110)
        files.append(
            File.generated(config, f"pictures/{name}", content=picture.getvalue())
        )
    for name, source in OUTSIDE.items():
        text = (
            (Path(config.docs_dir).parent / source).read_text().replace("](docs/", "](")
        )
        for page, path in OUTSIDE.items():
            text = text.replace(f"]({path}", f"]({page}")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Puts the tables and the demo on their pages, takes files outside of the docs into the site, and links them."""
    repository = Path(config.docs_dir).parent
    folder = (Path(config.docs_dir) / page.file.src_uri).parent
    for line, table in TABLES.items():
        if line in markdown:
            markdown = markdown.replace(line, table())

    def moved(link: re.Match) -> str:
        target = (folder / link[1]).resolve()
        is_page = target.suffix == ".md"  # which MkDocs knows, or reports as missing
        if is_page or target.is_relative_to(config.docs_dir) or not target.is_file():
            return link[1]
        place = target.relative_to(repository).as_posix()
        if files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(target)))
        return posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")

    if page.file.src_uri == "demo/index.md" and files.get_file_from_path(DEMO):
        markdown = PICTURE_OF_DEMO.sub(FRAME, markdown)
    return LINK.sub(moved, markdown)


def on_page_content(
    content: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Writes formulas as MathML, which needs no script, and drawings into the page, whose colours they then have."""

    def as_mathml(formula: re.Match) -> str:
        return convert(
            html.unescape(formula[2]),
            display="block" if formula[1] == "div" else "inline",
        )

    content = DRAWING.sub(
        lambda drawing: (Path(config.docs_dir) / drawing[1]).read_text(), content
    )
    return FORMULA.sub(as_mathml, content)
