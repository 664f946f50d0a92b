"""Estimates what FlipOut would cost for a model that is too large for this machine, without running it.

Run `python -m experiments.benchmarks.plan`. It makes fake CPU devices, compiles one step of the optimizer for all of
them from abstract arrays, and reads from the program of one device how much memory it needs, what it sends, and what
it reads and writes. From this, and from speeds that you give, it estimates

    time = traffic / memory + sum over collectives of (latency * log2(n) + moved / link)

where `traffic` is the number of bytes that all fused operations read and write, n is the number of devices in a
collective, and `moved` is `2 (n - 1) / n` times the bytes of an all-reduce, and `(n - 1) / n` times the bytes of any
other collective. A step that does not prune is compared with a step of the bare optimizer. It must at least read the
gradients once more, since their norm must be known before noise is added, read the masks, and read and write the
flips. XLA compiles the program for CPU, where it fuses less than for an accelerator. The communication is read from a
second program, which counts weights in the way that accelerators do.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import jax
import optax
import tyro
from jax.sharding import AxisType, Mesh

import flipout_jax as fj

from ..folder import tables as markdown_tables
from . import plan_faults, programs
from .decoders import DECODERS, bytes_per_device, parameters, sharded_state
from .fake_devices import fake_devices
from .update import lower

Model = Literal["124m", "7b", "70b"]


@dataclasses.dataclass(frozen=True)
class Speeds:
    """The assumed speeds of a device."""

    memory: float = 3.35
    """Memory bandwidth in TB/s."""
    link: float = 400.0
    """Network bandwidth of each device in Gb/s."""
    latency: float = 15.0
    """Latency of one hop of a collective in microseconds; a collective takes log2(devices) hops."""

    def to_move(self, traffic: float) -> float:
        """Returns the seconds it takes to read and write this many bytes."""
        return traffic / (1e12 * self.memory)

    def to_communicate(self, work: programs.Work) -> float:
        """Returns the seconds that the collectives take, one after the other."""
        seconds = 0.0
        for one in work.collectives:
            share = (2 if one.kind == "all-reduce" else 1) * (one.group - 1) / one.group
            hops = math.ceil(math.log2(max(one.group, 1)))
            seconds += one.times * (1e-6 * self.latency * hops + share * one.bytes / (1e9 / 8 * self.link))
        return seconds


@dataclasses.dataclass(frozen=True)
class Options:
    """FlipOut's step for large models on many devices, compiled but not run."""

    models: tuple[Model, ...] = ("7b", "70b")
    """Model sizes: those of Llama 2, and one of 124 million parameters for a quick look."""
    devices: tuple[int, ...] = (256, 4096)
    """Numbers of devices, each tried with each model."""
    tensor_parallel: int = 8
    """Devices along the axis `model` of the mesh; the others shard along the axis `data`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and gradients."""
    inner: Literal["adamw", "sgd"] = "adamw"
    """Optimizer that FlipOut wraps; sgd has momentum."""
    impl: Literal["threefry2x32", "rbg"] = "threefry2x32"
    """PRNG implementation of the noise."""
    speeds: Speeds = dataclasses.field(default_factory=Speeds)
    """Speeds for the estimate of time."""
    markdown: Path | None = None
    """File to write the tables to. By default they are only printed."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The result for one model on one number of devices. All bytes are those of one device.

    Attributes:
      model: the name of the model.
      devices: the number of devices.
      size: the number of parameters of the whole model.
      prunable: the number of prunable parameters on one device.
      weights: bytes of the parameters; the gradients have as many again.
      inner: bytes of the wrapped optimizer's state.
      masks: bytes of the masks.
      flips: bytes of the flip counts.
      temporary: bytes of the step's temporaries.
      bare_temporary: bytes of the temporaries in a step of the wrapped optimizer alone.
      program: what the step moves.
      links: what the step moves when it counts as on an accelerator, for its communication.
      bare: what a step of the wrapped optimizer alone moves.
      faults: what is wrong with the program, in words.
    """

    model: str
    devices: int
    size: int
    prunable: int
    weights: int
    inner: int
    masks: int
    flips: int
    temporary: int
    bare_temporary: int
    program: programs.Program
    links: programs.Program
    bare: programs.Program
    faults: tuple[str, ...]

    @property
    def floor(self) -> int:
        """The least bytes that a step without pruning must move in addition to those of the bare optimizer."""
        return self.weights + self.masks + 2 * self.flips

    @property
    def added(self) -> int:
        """The bytes that a step without pruning moves in addition to those of the bare optimizer, in this program."""
        return self.program.always.traffic - self.bare.all.traffic


def main(options: Options) -> None:
    """Prints the tables, and exits with an error if a program has faults."""
    with fake_devices(max(options.devices)):
        plans = [plan(model, devices, options) for model in options.models for devices in options.devices]
    text = "\n".join(tables(plans, options))
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", "utf-8")
    faults = [f"{one.model} on {one.devices:,}: {fault}" for one in plans for fault in one.faults]
    if faults:
        raise SystemExit("\n".join(faults))


def plan(model: Model, devices: int, options: Options) -> Plan:
    """Compiles the step of one model for this many of JAX's devices."""
    if devices < 1 or devices % options.tensor_parallel:
        raise ValueError(
            f"`devices` must be a multiple of {options.tensor_parallel}, `tensor_parallel`, got {devices}."
        )
    shape = devices // options.tensor_parallel, options.tensor_parallel
    used = jax.devices()[: math.prod(shape)]
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=used)
    params = parameters(DECODERS[model], mesh, options.dtype)
    inner = optax.adamw(1e-4) if options.inner == "adamw" else optax.sgd(0.1, momentum=0.9)
    schedule = fj.schedules.geometric(0.9, begin=1_000, end=9_000, prunings=10)
    optimizer = fj.flipout(inner, schedule, key=jax.random.key(0, impl=options.impl))
    start = time.perf_counter()
    compiled, state = _compiled(optimizer, params, mesh)
    with _variants_of_accelerators():
        links = programs.read(_compiled(optimizer, params, mesh)[0].as_text(), devices)
    bare, bare_state = _compiled(inner, params, mesh)
    print(f"{model} on {devices:,} devices: compiled in {time.perf_counter() - start:.0f} s", flush=True)
    program = programs.read(compiled.as_text(), devices)
    masks = fj.get_masks(state)
    prunable = jax.tree.leaves(masks)
    return Plan(
        model=model,
        devices=devices,
        size=sum(leaf.size for leaf in jax.tree.leaves(params)),
        prunable=sum(math.prod(mask.sharding.shard_shape(mask.shape)) for mask in prunable),
        weights=bytes_per_device(params),
        inner=bytes_per_device(bare_state),
        masks=bytes_per_device(masks),
        flips=bytes_per_device(state.saliency_state),
        temporary=compiled.memory_analysis().temp_size_in_bytes,
        bare_temporary=bare.memory_analysis().temp_size_in_bytes,
        program=program,
        links=links,
        bare=programs.read(bare.as_text(), devices),
        faults=(
            *plan_faults.large(program),
            *plan_faults.large(links),
            *plan_faults.whole(program, params),
            *plan_faults.misplaced(compiled, params, state),
        ),
    )


def _compiled(optimizer: optax.GradientTransformation, params: Any, mesh: Mesh) -> tuple[Any, Any]:
    """Returns the compiled step, which may reuse the buffers of parameters and state, and the abstract state."""
    state = sharded_state(jax.eval_shape(optimizer.init, params), params, mesh)
    return lower(optimizer, params, state).compile(), state


@contextlib.contextmanager
def _variants_of_accelerators() -> Iterator[None]:
    """Traces the variants that accelerators run, where the library has another one for CPU."""
    with mock.patch.object(jax.lax, "platform_dependent", lambda *operands, default, **_: default(*operands)):
        yield


def tables(plans: list[Plan], options: Options) -> list[str]:
    """Returns the lines of three Markdown tables: memory, communication, and the estimated time."""
    speeds = options.speeds
    return [
        f"{options.dtype} weights, {options.inner}, noise by {options.impl}, a mesh of devices / "
        f"{options.tensor_parallel} x {options.tensor_parallel}; jax {jax.__version__}, optax {optax.__version__}.",
        "",
        "Memory of one device, MB:",
        "",
        *_table(
            plans,
            {
                "weights": lambda one: _mega(one.weights),
                "gradients": lambda one: _mega(one.weights),
                f"{options.inner}": lambda one: _mega(one.inner),
                "masks": lambda one: _mega(one.masks),
                "flips": lambda one: _mega(one.flips),
                "masks and flips, bytes per weight": lambda one: f"{(one.masks + one.flips) / one.prunable:.2f}",
                "temporaries": lambda one: _mega(one.temporary),
                f"temporaries of {options.inner} alone": lambda one: _mega(one.bare_temporary),
            },
        ),
        "",
        "Communication of one device:",
        "",
        *_table(
            plans,
            {
                "collectives per step": lambda one: f"{one.links.always.communications:,}",
                "bytes per step": lambda one: f"{one.links.always.communicated:,}",
                "collectives per pruning": lambda one: f"{one.links.sometimes.communications:,}",
                "bytes per pruning": lambda one: f"{one.links.sometimes.communicated:,}",
                "largest array, bytes": lambda one: f"{one.links.all.largest:,}",
            },
        ),
        "",
        f"Estimated time, ms, at {speeds.memory:g} TB/s of memory, {speeds.link:g} Gb/s per device and "
        f"{speeds.latency:g} us per hop:",
        "",
        *_table(
            plans,
            {
                f"a step of {options.inner} alone, memory": lambda one: _milli(speeds.to_move(one.bare.all.traffic)),
                "what FlipOut adds, memory, at least": lambda one: _milli(speeds.to_move(one.floor)),
                "as compiled for CPU": lambda one: _milli(speeds.to_move(one.added)),
                "links": lambda one: _milli(speeds.to_communicate(one.links.always)),
                "a pruning, memory, as compiled for CPU": lambda one: _milli(
                    speeds.to_move(one.program.sometimes.traffic)
                ),
                "a pruning, links": lambda one: _milli(speeds.to_communicate(one.links.sometimes)),
            },
        ),
    ]


def _table(plans: list[Plan], columns: dict[str, Callable[[Plan], str]]) -> list[str]:
    rows = []
    for one in plans:
        size = f"{one.size / 1e9:.1f} B" if one.size >= 1e9 else f"{one.size / 1e6:.0f} M"
        rows.append([size, f"{one.devices:,}", *(cell(one) for cell in columns.values())])
    return markdown_tables.as_markdown(["parameters", "devices", *columns], rows, text_columns=0).split("\n")


def _mega(size: int) -> str:
    return f"{size / 1e6:,.1f}"


def _milli(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
