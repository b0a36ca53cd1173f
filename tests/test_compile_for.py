"""The command that asks the compilers of TPUs and GPUs, and its reading of their programs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
# A TPU's program in a few lines; the tiles, memories and attributes are as libtpu writes them.
HLO = r"""HloModule jit_forward, is_scheduled=true

%fused_computation.1 (param_0.1: f32[2,8,8], param_1.1: bf16[8,128]) -> f32[2,128] {
  %param_0.1 = f32[2,8,8]{2,1,0:T(8,128)S(1)} parameter(0)
  %param_1.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = f32[2,128]{1,0:T(2,128)} convolution(%param_0.1, %param_1.1), dim_labels=bf_io->bf
}

%fused_computation.2 (param_0.2: f32[2,8,8]) -> bf16[2,8,8] {
  %param_0.2 = f32[2,8,8]{2,1,0:T(8,128)} parameter(0)
  ROOT %convert.1 = bf16[2,8,8]{1,2,0:T(8,128)(2,1)} convert(%param_0.2)
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b)
}

%part.1 (param_0.3: f32[4,128]) -> f32[16,128] {
  %param_0.3 = f32[4,128]{1,0:T(4,128)} parameter(0)
  ROOT %all-gather.1 = f32[16,128]{1,0:T(8,128)} all-gather(%param_0.3), channel_id=5, dimensions={0}
}

%part.2 (param_0.4: f32[4,128]) -> f32[16,128] {
  %param_0.4 = f32[4,128]{1,0:T(4,128)} parameter(0)
  ROOT %all-gather.2 = f32[16,128]{1,0:T(8,128)} all-gather(%param_0.4), channel_id=5, dimensions={0}
}

%body (state: (f32[2,128], s32[])) -> (f32[2,128], s32[]) {
  %state = (f32[2,128]{1,0:T(2,128)}, s32[]{:T(128)}) parameter(0)
  %gte.1 = f32[2,128]{1,0:T(2,128)} get-tuple-element(%state), index=0
  %tanh.1 = f32[2,128]{1,0:T(2,128)} tanh(%gte.1), backend_config={"estimated_cycles":"10"}
  %all-reduce.1 = f32[2,128]{1,0:T(2,128)} all-reduce(%tanh.1), channel_id=7, to_apply=%sum
  ROOT %tuple.1 = (f32[2,128]{1,0:T(2,128)}, s32[]{:T(128)}) tuple(%all-reduce.1, %gte.1)
}

%condition (state: (f32[2,128], s32[])) -> pred[] {
  %state.1 = (f32[2,128]{1,0:T(2,128)}, s32[]{:T(128)}) parameter(0)
  ROOT %true = pred[]{:T(512)} constant(true)
}

ENTRY %main.1 (parameters__kernel: f32[2,8,8], images: bf16[8,128]) -> (f32[2,128], s32[]) {
  %parameters__kernel = f32[2,8,8]{2,1,0:T(8,128)} parameter(0), metadata={op_name="parameters[\'kernel\']"}
  %images = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(1), metadata={op_name="images"}
  %copy-start = (f32[2,8,8]{2,1,0:T(8,128)S(1)}, f32[2,8,8]{2,1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%parameters__kernel)
  %cast = bf16[2,8,8]{1,2,0:T(8,128)(2,1)} fusion(%parameters__kernel), kind=kLoop, calls=%fused_computation.2, backend_config={"estimated_cycles":"300"}
  %copy-done = f32[2,8,8]{2,1,0:T(8,128)S(1)} copy-done(%copy-start)
  %fusion.1 = f32[2,128]{1,0:T(2,128)} fusion(%copy-done, %images), kind=kOutput, calls=%fused_computation.1, metadata={op_name="jit(forward)/dot_general"}, backend_config={"estimated_cycles":"600"}
  %gather.1 = f32[16,128]{1,0:T(8,128)S(1)} fusion(%fusion.1), kind=kCustom, calls=%part.1
  %gather.2 = f32[16,128]{1,0:T(8,128)S(1)} fusion(%fusion.1), kind=kCustom, calls=%part.2
  %scattered = f32[4,128]{1,0:T(4,128)} reduce-scatter(%gather.2), channel_id=8, dimensions={0}, to_apply=%sum
  %tuple.2 = (f32[2,128]{1,0:T(2,128)}, /*index=1*/s32[]{:T(128)}) tuple(%fusion.1, %images)
  ROOT %while.1 = (f32[2,128]{1,0:T(2,128)}, s32[]{:T(128)}) while(%tuple.2), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"10"}}
}
"""  # noqa: E501


FUSED, STEP = "small RepMLP-Res50-light-224:8:fused:bfloat16", "small pure_mlp:64:step:float32:4x4:fsdp4"
# Of the parameters, padded over plain bytes for a TPU.
MOST_PADDED = {FUSED: 4.0, STEP: 1.75}
COLLECTIVES = {"all-gather": 4, "all-reduce": 30}


@pytest.fixture(autouse=True)
def _parts(monkeypatch):
    """Makes the modules of the benchmark importable."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def program(_parts):
    from ahead_of_time import hlo

    return hlo.parse(HLO)


def run(*arguments, cwd=ROOT, **environment):
    command = [sys.executable, str(ROOT / "benchmarks" / "compile_for.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, cwd=cwd)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "plain", "padded", "is_in_hbm"),
    [
        ("f32[2,8,8]{2,1,0:T(8,128)}", 512, 8192, True),
        ("f32[2,8,8]{0,2,1:T(8,128)S(1)}", 512, 32768, False),  # the axis of 2 lies in the lanes
        ("bf16[3,100]{1,0:T(8,128)(2,1)}", 600, 2048, True),
        ("f32[100]{0:T(128)}", 400, 512, True),
        ("f32[2,7,7,8,7,7,8]{6,5,4,3,2,1,0:T(8,128)}", 4 * 2 * 392 * 392, 4 * 2 * 392 * 7 * 8 * 128, True),
        ("f32[5,7]{1,0}", 140, 140, True),  # a GPU's, without tiles
        ("pred[]", 1, 1, True),
        ("s32[]{:T(128)S(2)}", 4, 4, False),
    ],
)
def test_bytes_of_an_array_in_whole_tiles(text, plain, padded, is_in_hbm):
    from ahead_of_time import hlo

    (array,) = hlo.arrays(text)
    assert (array.bytes, array.padded_bytes, array.is_in_hbm) == (plain, padded, is_in_hbm)


def test_arrays_of_a_nested_tuple():
    from ahead_of_time import hlo

    found = hlo.arrays("((f32[2]{0:T(128)}), /*index=1*/bf16[3,4]{1,0:T(8,128)(2,1)}, token[])")
    assert [array.text for array in found] == ["f32[2]", "bf16[3,4]"]


def test_text_that_is_no_program_is_refused():
    from ahead_of_time import hlo

    with pytest.raises(ValueError, match="the text of 5 characters holds no entry computation"):
        hlo.parse("hello")


def test_each_instruction_that_runs_has_its_kind_cycles_and_bytes(program):
    from ahead_of_time import costs

    found = {cost.instruction.name: cost for cost in costs.costs(program)}
    assert {name: (cost.kind, cost.cycles, cost.times) for name, cost in found.items()} == {
        "cast": (costs.COPIES, 300, 1),
        "copy-done": (costs.COPIES, None, 1),
        "fusion.1": (costs.PRODUCTS, 600, 1),
        "gather.1": (costs.COLLECTIVES, None, 1),
        "gather.2": (costs.COLLECTIVES, None, 1),
        "scattered": (costs.COLLECTIVES, None, 1),
        "tanh.1": (costs.REST, 100, 10),
        "all-reduce.1": (costs.COLLECTIVES, None, 10),
    }
    # Read from the main memory, and written elsewhere.
    assert (found["copy-done"].bytes, found["copy-done"].padded_bytes) == (512, 8192)
    assert (found["cast"].bytes, found["cast"].padded_bytes) == (512 + 256, 8192 + 4096)
    # One operand lies in the memory on the chip.
    assert found["fusion.1"].bytes == 2048 + 1024
    assert found["tanh.1"].bytes == 10 * 2 * 1024


def test_a_slice_reads_no_more_than_it_writes():
    from ahead_of_time import costs, hlo

    program = hlo.parse("""
%fused_computation (param_0: f32[1000]) -> f32[10] {
  %param_0 = f32[1000]{0} parameter(0)
  ROOT %slice.1 = f32[10]{0} slice(%param_0), slice={[5:15]}
}

ENTRY %main.1 (x: f32[1000]) -> f32[10] {
  %x = f32[1000]{0} parameter(0)
  ROOT %wrapped_slice = f32[10]{0} fusion(%x), kind=kLoop, calls=%fused_computation
}
""")
    (cost,) = costs.costs(program)
    assert (cost.kind, cost.bytes) == (costs.COPIES, 80)


def test_the_scratch_memory_of_a_library_is_no_traffic():
    from ahead_of_time import costs, hlo

    program = hlo.parse("""
ENTRY %main.1 (x: f32[8,64]) -> f32[8,10] {
  %x = f32[8,64]{1,0} parameter(0)
  %product = (f32[8,10]{1,0}, s8[4194304]{0}) custom-call(%x, %x), custom_call_target="__cublas$lt$matmul"
  ROOT %result = f32[8,10]{1,0} get-tuple-element(%product), index=0
}
""")
    (cost,) = costs.costs(program)
    assert (cost.kind, cost.bytes) == (costs.PRODUCTS, 2 * 2048 + 320)


def test_parameters_are_told_from_images(program):
    from ahead_of_time import costs

    assert costs.padding(costs.parameters(program, ("parameters",))) == dict(
        bytes=512, padded_bytes=8192, padded_over_plain=16
    )


def test_a_collective_that_is_spread_over_fusions_counts_once(program):
    from ahead_of_time import costs

    assert costs.collectives(program) == {
        "all-gather": dict(count=1, bytes=8192),
        "all-reduce": dict(count=10, bytes=10240),
        "reduce-scatter": dict(count=1, bytes=8192),  # of the whole array, as for the others
    }


def test_shares_are_of_the_estimated_time_or_without_estimates_of_bytes(program):
    from ahead_of_time import costs

    found = costs.summary(costs.costs(program), clock=1e6, bandwidth=1e9, dearest=2)
    assert found["estimated_ms"] == pytest.approx(1.0)
    assert found["copies_share"] == pytest.approx(0.3)
    assert {kind: row["share"] for kind, row in found["kinds"].items()} == pytest.approx(
        {costs.PRODUCTS: 0.6, costs.COPIES: 0.3, costs.REST: 0.1, costs.COLLECTIVES: 0.0}
    )
    assert [(row["instruction"], row["op_name"]) for row in found["dearest"]] == [
        ("fusion.1", "jit(forward)/dot_general"),
        ("cast", ""),
    ]
    assert found["without_estimate"]["kernels"] == 14
    without = costs.summary(costs.costs(program), clock=None, bandwidth=1e9)
    assert without["estimated_ms"] is None
    assert without["shares_of"] == "bytes"
    assert without["copies_share"] == pytest.approx((8192 + 8192 + 4096) / without["traffic"]["padded_bytes"])


@pytest.mark.parametrize(
    "name",
    [
        "pure_mlp:1024:fused:float32",
        "RepMLP-Res50-light-224:8:trained:bfloat16_parameters",
        "small pure_mlp:64:step:bfloat16:4x4:fsdp4",
    ],
)
def test_a_row_is_its_name(name):
    from ahead_of_time.rows import row

    assert str(row(name)) == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "for which device? one of v5e, v6e, h100"),
        (("v5e", "--rows", "pure_mlp:8:fused"), "there is no row 'pure_mlp:8:fused'; a name is MODEL:BATCH:"),
        (("v5e", "--rows", "pure_mlp:8:fused:float32:4x4"), "only training steps are compiled for several chips"),
        (("v5e", "--quick", "--rows", "pure_mlp:8:fused:float32"), "--rows and --quick both choose rows"),
        (("--compare", "none.jsonl", "other.jsonl"), "No such file or directory: 'none.jsonl'"),
    ],
)
def test_arguments_that_cannot_be_used_are_one_line(arguments, message):
    code, output = run(*arguments)
    assert code == 2
    assert output.startswith("error: ")
    assert message in output
    assert output.count("\n") == 1


def result(estimated_ms=1.0, name="net:8:fused:float32", libtpu="1", **changed):
    """A row as it is recorded."""
    return (
        dict(
            row=name,
            estimated_ms=estimated_ms,
            traffic=dict(ms_at_bandwidth=0.5, padded_over_plain=2.0),
            peak_bytes=10**6,
            parameters=dict(padded_over_plain=5.0),
            shares_of="estimated time",
            copies_share=0.5,
            kernels=100,
            collectives={},
            provenance=dict(versions=dict(jax="1", jaxlib="1", libtpu=libtpu)),
        )
        | changed
    )


@pytest.mark.parametrize(
    ("new", "lines", "code"),
    [
        (result(), [], 0),
        (result(1.04), [], 0),
        (result(0.5), ["net:8:fused:float32: estimated ms 1 → 0.5 (2.00 × less)"], 0),
        (result(2.0), ["net:8:fused:float32: estimated ms 1 → 2 (2.00 × more)"], 1),
        (
            result(copies_share=0.8),
            ["net:8:fused:float32: share of copies, of estimated time 0.5 → 0.8 (1.60 × more)"],
            0,
        ),
        (
            result(collectives={"all-reduce": dict(count=2, bytes=10**6)}),
            [
                "net:8:fused:float32: all-reduce, number 0 → 2",
                "net:8:fused:float32: all-reduce, MB 0 → 1",
            ],
            0,
        ),
        (
            result(name="other:8:fused:float32"),
            ["net:8:fused:float32: only in the old file", "other:8:fused:float32: only in the new file"],
            0,
        ),
        (dict(result(), failed="why"), ["net:8:fused:float32: fails now: why"], 1),
        (result(libtpu="2"), ["another libtpu: 1 and 2; figures may differ by that alone"], 0),
    ],
)
def test_what_changed_between_two_files(tmp_path, capsys, new, lines, code):
    import compile_for
    from ahead_of_time.changes import read

    for name, row in (("old", result()), ("new", new)):
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    assert compile_for.compare(read(tmp_path / "old"), read(tmp_path / "new")) == code
    assert capsys.readouterr().out.splitlines() == lines


def test_a_line_that_is_no_result_is_named(tmp_path):
    from ahead_of_time.changes import read

    path = tmp_path / "found.jsonl"
    path.write_text(json.dumps(result()) + '\n{"part": "check"}\n')
    with pytest.raises(ValueError, match=r'found.jsonl, line 2 is not a result of compile_for.py: {"part": "check"}'):
        read(path)


def test_a_row_replaces_the_earlier_one_of_its_name(tmp_path):
    from ahead_of_time.changes import read
    from ahead_of_time.report import record

    path = tmp_path / "found.jsonl"
    for row in (result(1.0), result(2.0, "other"), result(3.0)):
        record(path, row)
    assert {name: row["estimated_ms"] for name, row in read(path).items()} == {"net:8:fused:float32": 3, "other": 2}


@pytest.mark.parametrize(
    "name",
    [
        "small RepMLPNet-T224:8:fused:bfloat16",
        pytest.param("small pure_mlp:8:step:float32", marks=pytest.mark.slow),
    ],
)
def test_programs_are_made_from_shapes_alone(name):
    from ahead_of_time.programs import lowered
    from ahead_of_time.rows import row

    program, macs = lowered(row(name), np.array(jax.devices()[:1]))
    assert macs > 0
    assert "stablehlo" in program.as_text()


@pytest.mark.parametrize("model", ["RepMLP-FaceRes", "pure_mlp_conv9"])
def test_a_model_that_is_not_among_the_small_ones_is_named(model):
    from ahead_of_time.programs import lowered
    from ahead_of_time.rows import row

    with pytest.raises(ValueError, match=f"there is no small {model}; there are pure_mlp, RepMLPNet-T224"):
        lowered(row(f"small {model}:8:fused:float32"), np.array(jax.devices()[:1]))


def test_the_picture_has_a_bar_for_each_figure_that_the_rows_have():
    from ahead_of_time.picture import draw

    def widths(figure):
        return [[bar.get_width() for bar in bars] for bars in figure.axes[0].containers]

    rows = {"one": result(ideal_ms=0.1), "other": result(2.0, ideal_ms=0.2)}
    assert widths(draw(rows, "title")) == [[1, 2], [0.5, 0.5], [0.1, 0.2]]
    counted = {"one": result(None, ideal_ms=0.1)}
    assert widths(draw(counted, "title")) == [[0.5], [0.1]]


@pytest.mark.slow
def test_small_models_compiled_for_a_tpu(tmp_path):
    pytest.importorskip("libtpu")
    failing = "RepMLP-FaceRes:8:step:float32"
    out = tmp_path / "found.jsonl"
    code, output = run("v5e", "--rows", FUSED, STEP, failing, "--out", out, "--hlo", tmp_path / "hlo", cwd=tmp_path)
    assert code == 1, output
    found = {row["row"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert "Traceback" not in output
    assert "nothing was executed" in output
    assert out.with_suffix(".png").stat().st_size > 0
    assert "only models for classification are trained here" in found[failing]["failed"]
    for name in (FUSED, STEP):
        row = found[name]
        assert 0 < row["ideal_ms"] < row["estimated_ms"]
        assert sum(kind["share"] for kind in row["kinds"].values()) == pytest.approx(1)
        assert row["provenance"]["versions"]["libtpu"]
        assert 1 <= row["parameters"]["padded_over_plain"] <= MOST_PADDED[name]
    assert found[FUSED]["collectives"] == {}
    numbers = {kind: row["count"] for kind, row in found[STEP]["collectives"].items()}
    assert numbers == COLLECTIVES
    # The TPU's form pools windows; the CPU's takes maxima down and across.
    text = (tmp_path / "hlo" / "small_RepMLP-Res50-light-224_8_fused_bfloat16.txt").read_text()
    assert " reduce-window(" in text
