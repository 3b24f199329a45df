"""A function that is called thousands of times on tensors of one shape, recorded once and replayed.

A gradient that is differentiated again in the pixels is some hundred small operations on a small network, and the
bookkeeping of autograd costs as much as they do. `traced` records the operations that a call makes, derivatives
included, computes once what does not depend on the argument, and replays the rest without autograd: the same
operations, so the same bits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

Function = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A tensor -> (value, gradient)."""

RELATIVE = 1e-4
"""How far a replayed gradient may lie from the called one, relative to its largest entry, before it is not used."""


def traced(function: Function, example: Tensor) -> Function:
    """Returns a function that gives the same results for tensors like the example, in less time.

    Recording takes as long as some hundred calls. The recording is tested on other tensors than the example; where it
    fails or disagrees, as for code that looks at values, the function itself is returned.

    Args:
        function: Draws nothing at random and has no side effects; what it holds besides its argument does not change.
        example: A tensor of the shape, number format and layout of all later ones.

    >>> square = traced(lambda x: (x.square().sum(), 2 * x), torch.ones(3))
    >>> square(torch.tensor([1.0, 2.0, 0.0]))
    (tensor(5.), tensor([2., 4., 0.]))
    """
    try:
        replay = _recorded(function, example)
        agrees = all(_agree(function(x), replay(x)) for x in (example, _other(example)))
    except Exception:  # whatever a user's model does that cannot be recorded: it still can be called
        return function
    return replay if agrees else function


def _other(example: Tensor) -> Tensor:
    """The example upside down and mirrored in its values' range: another tensor of the same kind."""
    return (example.amax() + example.amin() - example).flip(-1).contiguous(memory_format=_layout(example))


def _layout(tensor: Tensor) -> torch.memory_format:
    last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not tensor.is_contiguous() else torch.contiguous_format


def _agree(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    scale = a[1].abs().amax().clamp_min(1e-30)
    return bool((a[1] - b[1]).abs().amax() <= RELATIVE * scale) and bool((a[0] - b[0]).abs() <= RELATIVE)


def _recorded(function: Function, example: Tensor) -> Function:
    from torch.fx.experimental.proxy_tensor import make_fx  # now: it brings sympy

    recording = make_fx(function)(example)
    _compute_constants(recording)
    _drop_copies(recording.graph)
    recording.graph.eliminate_dead_code()
    recording.recompile()
    replayed = recording.forward
    layout = _layout(example)

    def replay(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            value, gradient = replayed(images.detach().contiguous(memory_format=layout))
        return value.clone(), gradient.clone()  # outside: ordinary tensors again

    return replay


def _compute_constants(recording: fx.GraphModule) -> None:
    """Replaces every operation on constants alone by its result."""
    graph = recording.graph
    known: dict[fx.Node, Any] = {
        node: getattr(recording, str(node.target)) for node in graph.nodes if node.op == "get_attr"
    }
    for node in graph.nodes:
        constant = node.op == "call_function" and node.all_input_nodes and known.keys() >= set(node.all_input_nodes)
        if constant and _pure(node):
            arguments, keywords = (map_arg(part, known.__getitem__) for part in (node.args, node.kwargs))
            with torch.no_grad():
                known[node] = node.target(*arguments, **keywords)  # pyright: ignore[reportCallIssue]
    for number, node in enumerate([n for n in graph.nodes if n.op == "call_function" and n in known]):
        if isinstance(known[node], Tensor) and any(user not in known for user in node.users):
            recording.register_buffer(f"constant_{number}", known[node].detach())
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.get_attr(f"constant_{number}"))


def _pure(node: fx.Node) -> bool:
    """Whether an operation changes nothing in place and draws nothing at random."""
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return schema is not None and not schema.is_mutable and not random


def _drop_copies(graph: fx.Graph) -> None:
    """Removes operations that return what they are given, as far as a recording without autograd is concerned."""
    for node in list(graph.nodes):
        if node.target in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
