"""Memories that keep nothing for longer than so many examples."""

from typing import Any

import jax.numpy as jnp

from jcl import checks
from jcl.errors import InputError
from jcl.memory.policy import AGE, Items, Policy, counted, rows


def aged(policy: Any, most: int) -> Policy:
    """The policy, which lets go of every item as soon as `most` further examples were offered.

    an item is held while age < most, its age the examples offered since.

    What is too old goes before a batch is inserted, by the policy's own rule for what is taken out:
    a reservoir is then about a uniform sample of the last `most` examples. It is never drawn again
    and no array holds it: its slot has zeros or another item. Of an imported file, ages go on where
    they stood.

    The ages are one more leaf of the items, which no draw shows. Every insert moves the items that
    stay, a pass over the memory.

    Args:
        policy: what another factory made, such as `reservoir(1000)`.
        most: the largest number of examples that may have been offered since; at least a batch, of
            a policy that is filled at boundaries at least what a boundary offers. Examples whose
            mask is all 0 do not count.

    Raises:
        InputError: the policy cannot let go of items; at init or insert, if a batch has more than
            `most` examples, or a key "age" of its own.

    >>> import jax.numpy as jnp, jcl
    >>> policy = jcl.memory.aged(jcl.memory.reservoir(10), most=3)
    >>> memory = policy.init({"inputs": jnp.zeros(2)})
    >>> for first in (1.0, 3.0, 5.0):
    ...     memory = policy.insert(memory, {"inputs": jnp.array([first, first + 1])}, None)
    >>> memory.items["inputs"].tolist()
    [4.0, 5.0, 6.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    most = checks.whole("aged", "most", most)
    if not isinstance(policy, Policy) or policy.forget is None:
        raise InputError(
            f"aged(policy={getattr(policy, '__name__', type(policy).__name__)}): give a memory "
            "that can let go of items, as in aged(jcl.memory.reservoir(1000), most=5000)."
        )
    forget = policy.forget

    def check(batch: Items) -> None:
        if rows(batch) > most:
            raise InputError(
                f"aged(most={most}): {rows(batch)} examples are offered at once, of which the "
                "first would be too old at once: give at least as many."
            )

    def init(batch):
        if AGE in batch:
            raise InputError(f'aged: the batch has a key "{AGE}" of its own: give it another name.')
        check(batch)
        return policy.init({**batch, AGE: jnp.zeros(rows(batch), jnp.int32)})

    def insert(memory, batch, key, scores=None):
        check(batch)
        place, number = counted(batch)
        ages = jnp.where(policy.filled(memory), memory.items[AGE] + number, 0)
        older = memory._replace(items={**memory.items, AGE: ages})
        memory = forget(older, ages < most)
        own = jnp.asarray(number - 1 - place + batch.get(AGE, 0), jnp.int32)
        return policy.insert(memory, {**batch, AGE: own}, key, scores)

    return policy._replace(init=init, insert=insert)
