"""The plan for many devices: what a device holds and sends, and that it would tell what should not be."""

import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh

from experiments.benchmarks import decoders, plan, programs


def found_by(what, environment):
    """Returns what `plan_runs.py` found on 8 fake devices."""
    # The script chooses the number of devices.
    env = {**os.environ, **environment, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", Path(__file__).with_name("plan_runs.py"), what]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def planned(default_environment):
    return found_by("plan", default_environment)


@pytest.fixture(scope="module")
def planted(default_environment):
    return found_by("faults", default_environment)


@pytest.mark.slow
def test_devices_come_from_several_processes(planted):
    assert planted["devices"] == 8
    assert planted["of this process"] == 4


@pytest.mark.slow
def test_every_device_holds_its_part(planned):
    one = planned
    # Normalizations are sharded over one axis of the mesh only.
    assert 1 <= one["weights"] / (4 * one["size"] / 8) < 1.001
    # Two moments, and a counter.
    assert 0 <= one["inner"] - 2 * one["weights"] < 64
    decoder = decoders.DECODERS["124m"]
    kernels = decoder.layers * (4 * decoder.width**2 + 3 * decoder.width * decoder.hidden)
    assert one["prunable"] == kernels / 8
    # For each other leaf a mask and a count that are scalars.
    assert 0 <= one["masks"] + one["flips"] - 3 * one["prunable"] < 64
    assert one["faults"] == []


@pytest.mark.slow
def test_a_step_sends_norms_and_a_pruning_counts(planned):
    one = planned
    assert one["bare"]["communications"] == 0
    for part in ("always", "sometimes"):
        assert one[part]["kinds"] == ["all-reduce"]
        assert set(one[part]["groups"]) <= {2, 4, 8}
        assert one[part]["largest"] == 4
    assert one["always"]["communicated"] < 256
    assert one["sometimes"]["communications"] > one["always"]["communications"] > 0
    # On CPU each device sends its counts.
    assert one["always, CPU"] == {**one["always"], "traffic": one["always, CPU"]["traffic"]}
    assert one["sometimes, CPU"]["largest"] == 4 * 8


@pytest.mark.slow
def test_what_flipout_adds_is_no_less_than_it_must_be(planned):
    one = planned
    assert one["floor"] == one["weights"] + one["masks"] + 2 * one["flips"]
    assert one["added"] == one["always, CPU"]["traffic"] - one["bare"]["traffic"] > one["floor"]
    # Weights, gradients and two moments are read, and all but the gradients written.
    assert one["bare"]["traffic"] >= 7 * one["weights"]


@pytest.mark.slow
def test_the_tables_have_a_row_for_each_plan(planned):
    rows = [line.split(" | ") for line in planned["tables"] if line.startswith("|")]
    assert [row[:2] for row in rows[2::3]] == [["| 124 M", "8"]] * 3
    assert [len(row) for row in rows[::3]] == [len(row) for row in rows[2::3]]


@pytest.mark.slow
def test_a_planted_gather_is_found(planted):
    assert planted["fine"]["large"] == []
    [part, whole] = planted["gathered"]["large"]
    assert "all-gather" in part
    assert whole.startswith(f"{4 * 1024 * 512:,} bytes are sent at once: ")
    assert "all-to-all" in planted["sorted"]["large"][0]


@pytest.mark.slow
def test_a_parameter_that_is_whole_on_a_device_is_found(planted):
    assert planted["fine"]["whole"] == []
    [whole] = planted["gathered"]["whole"]
    assert whole.startswith(f"an array of {4 * 1024 * 512:,} bytes is made: ")


@pytest.mark.slow
def test_a_state_that_is_not_kept_in_place_is_found(planted):
    assert planted["fine"]["misplaced"] == []
    kept = planted["moved"]["kept"]
    assert planted["moved"]["misplaced"] == [f"only {kept // 2:,} of {kept:,} bytes are updated in place"]


@pytest.mark.slow
def test_init_shards_the_state_as_the_parameters_and_a_compiled_one_must_be_told(planted):
    """As `docs/scale.md` says: masks, flips and both moments."""
    assert planted["init"] == [True] * 4
    assert planted["compiled init"] == [False] * 4


@pytest.mark.slow
@pytest.mark.parametrize("case", ["fine", "sorted", "gathered", "moved"])
def test_traffic_is_what_xla_counts(case, planted):
    assert planted[case]["traffic"] == pytest.approx(planted[case]["of XLA"], rel=1e-4)


PROGRAM = """HloModule planted, is_scheduled=true

%fused (param.0: f32[64,8], param.1: s32[]) -> f32[1,8] {
  %param.0 = f32[64,8]{1,0} parameter(0)
  %param.1 = s32[] parameter(1)
  ROOT %dynamic-slice.0 = f32[1,8]{1,0} dynamic-slice(%param.0, %param.1, %param.1), dynamic_slice_sizes={1,8}
}

%thrice (loop.0: (s32[], f32[64,8])) -> (s32[], f32[64,8]) {
  %loop.0 = (s32[], /*index=1*/f32[64,8]{1,0}) parameter(0)
  %i.0 = s32[] get-tuple-element(%loop.0), index=0
  %x.0 = f32[64,8]{1,0} get-tuple-element(%loop.0), index=1
  %row = f32[1,8]{1,0} fusion(%x.0, %i.0), kind=kLoop, calls=%fused
  %gathered = f32[1,64]{1,0:T(8,128)} all-gather(%row), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={1}
  ROOT %tuple.0 = (s32[], f32[64,8]{1,0}) tuple(%i.0, %x.0)
}

%fewer (loop.1: (s32[], f32[64,8])) -> pred[] {
  %loop.1 = (s32[], f32[64,8]{1,0}) parameter(0)
  ROOT %is_less = pred[] constant(true)
}

%little (x.1: f32[64,8]) -> f32[64,8] {
  ROOT %x.1 = f32[64,8]{1,0} parameter(0)
}

%much (x.2: f32[64,8]) -> f32[64,8] {
  %x.2 = f32[64,8]{1,0} parameter(0)
  %in = (s32[], f32[64,8]{1,0}) tuple(%x.2, %x.2)
  %out = (s32[], f32[64,8]) while(%in), condition=%fewer, body=%thrice, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %x.3 = f32[64,8]{1,0} get-tuple-element(%out), index=1
}

%turn (loop.2: (s32[], f32[64,8])) -> (s32[], f32[64,8]) {
  %loop.2 = (s32[], f32[64,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%loop.2), index=0
  %x.4 = f32[64,8]{1,0} get-tuple-element(%loop.2), index=1
  %sum.0 = (f32[64,8]{1,0}, s32[]) all-reduce(%x.4, %i.1), replica_groups=[4,2]<=[8], to_apply=%add
  %x.5 = f32[64,8]{1,0} conditional(%i.1, %x.4, %x.4), branch_computations={%little, %much}
  ROOT %tuple.1 = (s32[], f32[64,8]{1,0}) tuple(%i.1, %x.5)
}

ENTRY %main (x.6: f32[64,8], i.2: s32[]) -> f32[64,8] {
  %x.6 = f32[64,8]{1,0} parameter(0)
  %i.2 = s32[] parameter(1)
  %norm = bf16[] all-reduce(%i.2), replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}, to_apply=%add
  %scattered = f32[8,8]{1,0} reduce-scatter(%x.6), replica_groups={}, dimensions={0}, to_apply=%add
  %tuple.2 = (s32[], f32[64,8]{1,0}) tuple(%i.2, %x.6)
  %while.0 = (s32[], f32[64,8]{1,0}) while(%tuple.2), condition=%fewer, body=%turn
  ROOT %x.7 = f32[64,8]{1,0} get-tuple-element(%while.0), index=1
}
"""


def test_collectives_are_told_apart_counted_and_measured():
    program = programs.read(PROGRAM, devices=8)
    kernel = 4 * 64 * 8

    def listed(work):
        return [(one.kind, one.arrays, one.group, one.times) for one in work.collectives]

    assert listed(program.always) == [("all-reduce", (4,), 4, 1), ("reduce-scatter", (kernel,), 8, 1)]
    assert listed(program.sometimes) == [("all-reduce", (kernel, 4), 2, 1), ("all-gather", (4 * 64,), 8, 3)]
    assert program.sometimes.communications == 4
    assert program.sometimes.communicated == kernel + 4 + 3 * 4 * 64
    assert program.all.largest == kernel
    assert program.all.widest[0] == kernel
    assert program.always.traffic == 4 + 2 + kernel + kernel // 8
    # Of the array that is sliced three times, three rows.
    slices = 3 * (4 * 8 + 4 + 4 * 8)
    assert program.sometimes.traffic == 2 * (kernel + 4) + slices + 3 * (4 * 8 + 4 * 64)


def test_the_estimate_is_the_formula():
    speeds = plan.Speeds(memory=2.0, link=80.0, latency=10.0)
    reduce = programs.Collective("all-reduce", (10**6, 10**6), group=4, times=3, line="")
    gather = programs.Collective("all-gather", (10**6,), group=8, times=1, line="")
    assert speeds.to_move(4e12) == 2.0
    # 80 Gb/s are 10 GB/s.
    assert speeds.to_communicate(programs.Work((reduce,))) == pytest.approx(3 * (2 * 10e-6 + 2 * 3 / 4 * 2e6 / 10e9))
    assert speeds.to_communicate(programs.Work((gather,))) == pytest.approx(3 * 10e-6 + 7 / 8 * 1e6 / 10e9)


@pytest.mark.parametrize(("name", "size", "arrays"), [("7b", 6_738_415_616, 1), ("70b", 68_976_648_192, 5)])
def test_the_decoders_have_the_sizes_of_llama_2(name, size, arrays):
    params = decoders.parameters(decoders.DECODERS[name], AbstractMesh((32, 8), ("data", "model")), "float32")
    leaves = jax.tree.leaves(params)
    assert sum(leaf.size for leaf in leaves) == size
    assert max(leaf.size for leaf in leaves) < 2**32
    assert sum(name.startswith("layers") for name in params) == arrays
    assert decoders.bytes_per_device(params) == 4 * sum(math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)


def test_faults_end_the_plan_after_its_tables(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(plan, "fake_devices", lambda count: contextlib.nullcontext())
    one = plan.Plan(
        "7b", 8, 10**9, 1, *[0] * 6, *[programs.Program(programs.Work(), programs.Work())] * 3, ("gathers",)
    )
    monkeypatch.setattr(plan, "plan", lambda model, devices, options: dataclasses.replace(one, devices=devices))
    options = plan.Options(models=("7b",), devices=(8, 4096), markdown=tmp_path / "plan.md")
    with pytest.raises(SystemExit, match=r"^7b on 8: gathers\n7b on 4,096: gathers$"):
        plan.main(options)
    assert capsys.readouterr().out == options.markdown.read_text("utf-8")


def test_devices_that_make_no_mesh_are_refused():
    with pytest.raises(ValueError, match=r"^`devices` must be a multiple of 8, `tensor_parallel`, got 12\.$"):
        plan.plan("7b", 12, plan.Options())


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match=r"^`text` must be a compiled program with an ENTRY, got 'nothing'\.$"):
        programs.read("nothing", 8)
