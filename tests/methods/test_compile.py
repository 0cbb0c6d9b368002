"""Plans, their application and their targets are one graph for `torch.compile`, the same for every key."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlmix._apply import apply
from rlmix.methods import get, names
from rlmix.ops.rng import Streams
from rlmix.types import MixInputs

# Loops whose length depends on the batch: the graph would hold hundreds of copies of their body.
LOOPS = {"comixup", "guidedmixup", "uniform"}
# Each number of cells has a graph of its own; one of them shows what all are like.
OPTIONS = {"puzzlemix": {"grids": (4,)}}
BATCH, SIDE, CLASSES = 6, 16, 5


@pytest.mark.parametrize("name", sorted(set(names()) - LOOPS))
def test_a_method_compiles_to_one_graph_that_serves_every_key(name: str) -> None:
    """A graph break, or a graph for each key, makes compiled training slower than eager."""
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    images, maps = torch.rand(BATCH, 3, SIDE, SIDE, generator=generator), torch.rand(BATCH, 8, 8, generator=generator)
    labels = torch.arange(BATCH) % CLASSES
    method = get(name, **OPTIONS.get(name, {}))
    graphs: list[torch.fx.GraphModule] = []

    def mixed(streams: Streams) -> tuple[Tensor, Tensor]:
        inputs = MixInputs(BATCH, SIDE, SIDE, saliency=maps, images=images, labels=labels)
        plan = method.plan(inputs, streams)
        return apply(images, plan), plan.soft_targets(labels, CLASSES)

    def counted(graph: torch.fx.GraphModule, example_inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(mixed, fullgraph=True, backend=counted)
    seen = set()
    for key in range(8):
        given = compiled(Streams([key]))
        for one, two in zip(given, mixed(Streams([key])), strict=True):
            torch.testing.assert_close(one, two, rtol=0.0, atol=1e-6)
        seen.add(tuple(given[0].flatten(1).sum(1).tolist()))
    # The choice on the host that R-Mix makes has a graph for each of its values, and torch adds one where it sees that
    # a number changes.
    assert len(graphs) <= 3
    assert len(seen) > 1 or name == "none"
