"""What the metadata says of the repository's address: links to it, and those of the README as an index shows it."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(r"(?P<picture>!?)(?P<text>\[[^]]*\])\((?!https?:|#)(?P<path>[^)\s]+)\)")


class Addresses(MetadataHookInterface):
    """Sets `readme` and `urls`, by the address in pyproject.toml."""

    def update(self, metadata: dict):
        """Adds them to the metadata; without an address the README stays as it is, and there are no links."""
        repository = self.config["repository"].rstrip("/")
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        if repository:
            *_, owner, name = repository.split("/")
            metadata["urls"] = {
                "Documentation": f"https://{owner.lower()}.github.io/{name}/",
                "Repository": repository,
                "Issues": f"{repository}/issues",
                "Changelog": f"{repository}/blob/HEAD/CHANGELOG.md",
            }
            readme = with_absolute_links(readme, repository)
        metadata["readme"] = {"content-type": "text/markdown", "text": readme}


def with_absolute_links(readme: str, repository: str) -> str:
    """The README with links to the files of the repository: pictures as they are, and others as GitHub shows them."""
    return RELATIVE.sub(
        lambda link: (
            f"{link['picture']}{link['text']}({repository}/{'raw' if link['picture'] else 'blob'}/HEAD/{link['path']})"
        ),
        readme,
    )
