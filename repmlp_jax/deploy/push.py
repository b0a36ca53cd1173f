"""Uploading a saved model to the Hugging Face hub."""

import json
from pathlib import Path
from typing import Any

from repmlp_jax.deploy.model_card import model_card
from repmlp_jax.listing import listed
from repmlp_jax.local_path import local_path
from repmlp_jax.storage.hub import SECONDS, asking, repository_of
from repmlp_jax.storage.models import DESCRIPTION, WEIGHTS, load

CARD = "README.md"
OF_A_RUN = "model", "fused", "ema", "ema_fused"


def push(folder: str | Path, repo: str, *, private: bool = False, overwrite: bool = False) -> str:
    """Uploads a saved model with a card in one commit; nothing on this machine is written to.

    Args:
        folder: of a run, whose `model/` is uploaded, or that `save_model` wrote. The card has the scores and the recipe
            of the run that the folder is or lies in.
        repo: OWNER/NAME, with or without `hf://`; the repository is made if there is none.
        private: let nobody else read it.
        overwrite: replace a model and a card that are there; the repository's history keeps the old ones.

    Returns:
        The address of the repository.

    Raises:
        FileNotFoundError: if there is no such folder.
        FileExistsError: if the repository has such files and `overwrite` is off.
        ValueError: if the folder holds no sound model, `repo` is not OWNER/NAME, or `private` is set and the repository
            is public.
        ImportError, OSError: as `storage.hub.asking`.
    """
    repository, revision = repository_of(repo)
    if revision:
        raise ValueError(f"{repo} names the revision {revision}: a model is pushed to OWNER/NAME")
    folder = local_path(folder).absolute()
    model = folder / "model" if (folder / "model" / DESCRIPTION).is_file() else folder
    if not model.is_dir():
        raise FileNotFoundError(f"there is no folder {model}: a run or the folder of a saved model can be pushed")
    saved = load(model)
    run = model.parent if model.name in OF_A_RUN else None
    made_with = _json(model, DESCRIPTION)["versions"]
    card = model_card(repository, saved, _json(run, "results.json"), _json(run, "config.json"), made_with)
    files: dict[str, Any] = {CARD: card.encode(), DESCRIPTION: model / DESCRIPTION, WEIGHTS: model / WEIGHTS}
    with asking(repository) as hub:
        api = hub.HfApi()
        try:
            there = api.model_info(repository, timeout=SECONDS)
        except hub.errors.RepositoryNotFoundError:
            there = None
    taken = [file.rfilename for file in there.siblings or () if file.rfilename in files] if there else []
    if taken and not overwrite:
        raise FileExistsError(f"{repository} holds {listed(taken)} already; --overwrite replaces them")
    if there and private and not there.private:
        raise ValueError(f"{repository} is public: leave out --private, or make it private on the hub")
    with asking(repository):
        if not there:
            api.create_repo(repository, private=private)
        added = [hub.CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(repository, added, commit_message=f"{type(saved.model).__name__} of repmlp_jax")
    return f"{hub.constants.ENDPOINT}/{repository}"


def _json(run: Path | None, name: str) -> dict[str, Any]:
    """What a file of a run holds; empty if there is none."""
    if run is None or not (run / name).is_file():
        return {}
    try:
        return dict(json.loads((run / name).read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{run / name} is damaged ({error}): mend or remove it") from error
