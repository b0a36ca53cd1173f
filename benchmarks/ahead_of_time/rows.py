"""The programs that are compiled, by name."""

import dataclasses
import re

NAME = re.compile(
    r"(?P<small>small )?(?P<model>[\w-]+):(?P<batch>[1-9]\d*):(?P<what>fused|trained|step|int8)"
    r":(?P<dtype>float32|bfloat16|bfloat16_parameters)(?::(?P<chips>[1-9]\d*x[1-9]\d*)(?::fsdp(?P<fsdp>[1-9]\d*))?)?"
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A program.

    Attributes:
        model: a name of `list_models()`.
        batch: images, of all chips together.
        what: "fused" or "trained", a forward pass in evaluation mode, "int8", that of a fused model with weights in
            int8, or "step", a training step by the recipe.
        dtype: "float32", "bfloat16" with parameters in float32, or "bfloat16_parameters" with these in bfloat16, too.
        chips: "1", or a mesh of chips, "4x4".
        fsdp: chips that share one copy of the parameters.
        small: whether the model is a small one of its kind.
    """

    model: str
    batch: int
    what: str
    dtype: str
    chips: str = "1"
    fsdp: int = 1
    small: bool = False

    def __str__(self) -> str:
        mesh = f":{self.chips}:fsdp{self.fsdp}" if self.chips != "1" else ""
        return f"{'small ' * self.small}{self.model}:{self.batch}:{self.what}:{self.dtype}{mesh}"


def row(name: str) -> Row:
    """The row of a name.

    Raises:
        ValueError: if the name is of another form, or asks for what cannot be.
    """
    parts = NAME.fullmatch(name)
    if parts is None:
        raise ValueError(
            f"there is no row {name!r}; a name is MODEL:BATCH:fused|trained|step|int8:"
            f"float32|bfloat16|bfloat16_parameters, and for several chips :4x4:fsdp4 follows"
        )
    found = Row(
        model=parts["model"],
        batch=int(parts["batch"]),
        what=parts["what"],
        dtype=parts["dtype"],
        chips=parts["chips"] or "1",
        fsdp=int(parts["fsdp"] or 1),
        small=bool(parts["small"]),
    )
    if found.chips != "1" and found.what != "step":
        raise ValueError(f"row {name!r}: only training steps are compiled for several chips")
    return found


T224, B224 = "RepMLPNet-T224", "RepMLPNet-B224"
TABLE = tuple(
    map(
        row,
        (
            *(f"pure_mlp:{batch}:fused:float32" for batch in (1024, 128, 8)),
            "pure_mlp:128:step:float32",
            *(f"{T224}:{batch}:fused:bfloat16_parameters" for batch in (128, 8, 1)),
            f"{T224}:128:step:bfloat16",
            f"{B224}:128:fused:float32",
            *(f"RepMLP-Res50-light-224:{batch}:fused:bfloat16_parameters" for batch in (128, 8)),
            "RepMLP-Res50-bottleneck-224-g4-8:128:fused:float32",
            "RepMLP-FaceRes:128:fused:float32",
            "PSPNet-RepMLP-Res50:2:fused:float32",
            "pure_mlp:2048:step:float32:4x4:fsdp4",
        ),
    )
)
QUICK = tuple(
    map(
        row,
        (
            "small pure_mlp:8:fused:float32",
            "small RepMLPNet-T224:8:fused:bfloat16",
            "small RepMLP-Res50-light-224:8:fused:bfloat16",
            "small pure_mlp:8:step:float32",
            "small pure_mlp:64:step:float32:4x4:fsdp4",
        ),
    )
)
