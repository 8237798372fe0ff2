"""A model over no more positions than the texts at hand need."""

import functools

import jax
import jax.numpy as jnp

from jcl import checks
from jcl.errors import InputError
from jcl.models.model import Model


def shortened(model: Model, *lengths: int) -> Model:
    """The model, on the shortest of these lengths that holds every text of the batch.

    Batches keep their one shape, and a step stays one program: it has a branch for each length, and
    takes one when it runs. A step then costs the less the shorter its longest text is; the results
    are the same to rounding, and dropout's draws are others. Under vmap, as where several seeds
    share a program, all branches are computed: leave it out there.

    Args:
        model: one whose `apply` takes an attention_mask and gives one row for each text, such as
            `jcl.models.bert` with a classification head. Without a mask it is as it was.
        lengths: in positions, besides the whole length of a batch.

    Raises:
        InputError: there is no length; when it is called, the output has a place for each position.

    >>> import jax, jax.numpy as jnp, jcl
    >>> config = jcl.models.BertConfig(
    ...     258, positions=8, width=4, layers=1, heads=2, inner=8, head="classes", classes=3
    ... )
    >>> model = jcl.models.shortened(jcl.models.bert(config), 2, 4)
    >>> inputs = jnp.array([[5, 6, 7, 0, 0, 0, 0, 0], [8, 9, 0, 0, 0, 0, 0, 0]])
    >>> params = model.init(jax.random.key(0))
    >>> model.apply(params, inputs, attention_mask=jnp.sign(inputs)).shape
    (2, 3)
    """
    if not lengths:
        raise InputError("shortened: give at least one length, such as 16.")
    for length in lengths:
        checks.whole("shortened", "lengths", length)

    def around(function):
        def call(params, inputs, key=None, *, attention_mask=None, token_types=None):
            whole = inputs.shape[1]
            steps = [*sorted({each for each in lengths if each < whole}), whole]
            given = {"attention_mask": attention_mask, "token_types": token_types}
            given = {name: each for name, each in given.items() if each is not None}
            if attention_mask is None or len(steps) == 1:
                return function(params, inputs, key, **given)

            def cut(length, params, inputs, key, given):
                given = {name: each[:, :length] for name, each in given.items()}
                return function(params, inputs[:, :length], key, **given)

            branches = [functools.partial(cut, length) for length in steps]
            shapes = {jax.eval_shape(each, params, inputs, key, given).shape for each in branches}
            if len(shapes) > 1:
                raise InputError(
                    "shortened: the model's output has a place for each position, so that it would "
                    "change its shape: give it a model with a head of classes."
                )
            longest = jnp.max(jnp.where(attention_mask > 0, jnp.arange(1, whole + 1), 0))
            which = jnp.searchsorted(jnp.asarray(steps), longest)
            return jax.lax.switch(which, branches, params, inputs, key, given)

        return call

    return model._replace(
        apply=around(model.apply), features=model.features and around(model.features)
    )
