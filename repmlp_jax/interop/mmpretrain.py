"""mmpretrain's names for the weights of RepMLPNet, and their official names."""

import re
from collections.abc import Mapping

import numpy as np

from repmlp_jax.models.state import MisfitError

# mmpretrain's key → official key. Each expression matches whole keys, and no key is matched by two.
PATTERNS = {
    r"backbone\.patch_embed\.projection\.(.+)": r"conv_embedding.conv.\1",
    r"backbone\.patch_embed\.norm\.(.+)": r"conv_embedding.bn.\1",
    r"backbone\.path_embed\.(.+)": r"conv_embedding.\1",  # the spelling of an earlier converter
    r"backbone\.downsample_layers\.(\d+)\.(.+)": r"embeds.\1.\2",
    r"backbone\.stages\.(\d+\.\d+)\.norm(\d)\.(.+)": r"stages.\1.prebn\2.\3",
    r"backbone\.stages\.(\d+\.\d+)\.repmlp_block\.gp\.conv(\d)\.conv\.(.+)": r"stages.\1.repmlp_block.gp.fc\2.\3",
    r"backbone\.stages\.(\d+\.\d+)\.repmlp_block\.((?!gp\.).+)": r"stages.\1.repmlp_block.\2",
    r"backbone\.stages\.(\d+\.\d+)\.ffn_block\.(.+)": r"stages.\1.ffn_block.\2",
    r"backbone\.final_norm\.(.+)": r"head_norm.\1",
    r"head\.fc\.(.+)": r"head.\1",
}
# Part of its input pipeline, not of the model.
LEFT_ASIDE = r"data_preprocessor\.(mean|std)"


def is_mmpretrain(state_dict: Mapping[str, np.ndarray]) -> bool:
    """Whether keys are mmpretrain's, which start with the name of the model without its classifier."""
    return any(key.startswith("backbone.") for key in state_dict)


def official_keys(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames weights to their official keys.

    Raises:
        MisfitError: if keys are not mmpretrain's, or two of them have the same meaning.
    """
    renamed, problems = {}, []
    for key, array in state_dict.items():
        if re.fullmatch(LEFT_ASIDE, key):
            continue
        matches = [
            re.sub(pattern, official, key) for pattern, official in PATTERNS.items() if re.fullmatch(pattern, key)
        ]
        if len(matches) != 1:
            problems.append(f"{key} is matched by {len(matches)} patterns")
        elif matches[0] in renamed:
            problems.append(f"{key} is a second {matches[0]}")
        else:
            renamed[matches[0]] = array
    if problems:
        raise MisfitError("state_dict is not in mmpretrain's layout", sorted(problems))
    return renamed
