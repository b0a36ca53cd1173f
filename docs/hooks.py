"""What MkDocs adds to the pages: their pictures, and the files of the repository that they link to."""

import io
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pictures import PICTURES

LINK = re.compile(r"(?<=\]\()((?:\.\./)+[^)#\s]+)")
# The page of docs/demo: where it was built, it stands in the place of its picture.
DEMO = "demo/built/index.html"
PICTURE_OF_DEMO = re.compile(r"!\[[^\]]*\]\(page\.png\)")
FRAME = '<iframe class="demo" src="built/index.html" title="Draw a digit"></iframe>'


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Draws the pictures."""
    for name, draw in PICTURES.items():
        picture = io.BytesIO()
        draw().savefig(picture, format="png", dpi=110)
        files.append(File.generated(config, f"pictures/{name}", content=picture.getvalue()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Takes files outside of the docs into the site, lets links lead to them there, and puts the demo on its page."""
    repository = Path(config.docs_dir).parent
    folder = Path(page.file.abs_src_path).parent

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
