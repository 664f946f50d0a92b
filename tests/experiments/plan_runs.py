"""Plans a small model on 8 fake devices of two processes, or plants faults, and prints what was found, as JSON.

A script for test_plan.py: the number of devices must be set before JAX starts, so this runs in a process of its own.
"""

import contextlib
import json
import sys

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import flipout_jax as fj
from experiments.benchmarks import decoders, plan, plan_faults, programs
from experiments.benchmarks.fake_devices import fake_devices

OPTIONS = plan.Options(models=("124m",), devices=(8,), tensor_parallel=2)


def planned():
    found = plan.plan("124m", 8, OPTIONS)
    names = ("weights", "inner", "masks", "flips", "size", "prunable", "temporary", "faults", "floor", "added")
    parts = {"always": found.links.always, "sometimes": found.links.sometimes, "bare": found.bare.all}
    parts |= {"always, CPU": found.program.always, "sometimes, CPU": found.program.sometimes}
    return {
        **{name: getattr(found, name) for name in names},
        **{
            part: {
                "kinds": sorted({one.kind for one in work.collectives}),
                "groups": sorted({one.group for one in work.collectives}),
                "communications": work.communications,
                "communicated": work.communicated,
                "largest": work.largest,
                "traffic": work.traffic,
            }
            for part, work in parts.items()
        },
        "tables": plan.tables([found], OPTIONS),
    }


def same(leaf, _):
    return leaf


def faults(of_updates=same, of_state=same):
    """What the plan says of an optimizer that does this to each leaf of its updates, and of its state."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:8])
    sharding = NamedSharding(mesh, PartitionSpec("data", "model"))
    params = {"dense": {"kernel": jax.ShapeDtypeStruct((1024, 512), jnp.float32, sharding=sharding)}}
    replicated = NamedSharding(mesh, PartitionSpec())

    def update_all(updates, state, params=None):
        return tuple(
            jax.tree.map(lambda leaf, change=change: change(leaf, replicated), tree)
            for tree, change in ((updates, of_updates), (state, of_state))
        )

    optimizer = optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update_all)
    compiled, state = plan._compiled(optimizer, params, mesh)
    program = programs.read(compiled.as_text(), 8)
    return {
        "sharding": str(jax.tree.leaves(state)[0].sharding.spec),
        "large": plan_faults.large(program),
        "whole": plan_faults.whole(program, params),
        "misplaced": plan_faults.misplaced(compiled, params, state),
        "kept": decoders.bytes_per_device((params, state)),
        "traffic": program.all.traffic,
        "of XLA": compiled.cost_analysis()["bytes accessed"],
    }


def placed(by):
    """How the kernel-shaped leaves of FlipOut's state are sharded, made by `init` or by a compiled `init`."""
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.local_devices())
    sharding = NamedSharding(mesh, PartitionSpec("data", "model"))
    params = {"dense": {"kernel": jax.device_put(jnp.ones((8, 4)), sharding)}}
    optimizer = fj.flipout(optax.adamw(1e-3), fj.schedules.one_shot(0.5, step=1), key=jax.random.key(0))
    leaves = [leaf for leaf in jax.tree.leaves(by(optimizer.init)(params)) if leaf.ndim == 2]
    return [leaf.sharding.is_equivalent_to(sharding, 2) for leaf in leaves]


def planted():
    return {
        "devices": len(jax.devices()),
        "of this process": len(jax.local_devices()),
        "fine": faults(),
        "sorted": faults(lambda g, _: jnp.sort(g, axis=0)),
        "gathered": faults(jax.lax.with_sharding_constraint),
        "init": placed(lambda init: init),
        "compiled init": placed(jax.jit),
        "moved": faults(of_state=jax.lax.with_sharding_constraint),
    }


def main():
    # The tables go to standard output, the progress of the plan does not.
    with contextlib.redirect_stdout(sys.stderr), fake_devices(8, most=4):
        found = {"plan": planned, "faults": planted}[sys.argv[1]]()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
