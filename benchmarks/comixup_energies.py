"""How good Co-Mixup's labellings are on real images: `RLMIX_DATA=FOLDER python -m benchmarks.comixup_energies`.

CIFAR-100 (`cifar-100-python` in the folder) and the gradients of a small network that is trained here. Writes JSON and
Markdown into `benchmarks/results`.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import report
from benchmarks.comixup import BATCH, PARTITION, PIXELS, blobs, by_full_search, by_graph_cuts, gaps, recorded
from rlmix import MixInputs, Streams, saliency
from rlmix.methods.comixup import CoMixup
from rlmix.ops.source_labelling import Exact, Inner, Instance, Multistart, energy_parts, one_by_one, solve
from rlmix.ops.source_labelling_numba import compiled
from rlmix.training import data
from rlmix.training.models import registry

TRAINED, EPOCHS, BATCHES = 10_000, 10, 10
CPU = torch.device("cpu")
PART_NAMES = ("costs", "smoothness", "shared, any", "shared, above the threshold")


def trained(arrays: data.Arrays) -> tuple[nn.Module, float]:
    """Return a network that has seen a part of the images, and its accuracy on the test part."""
    channels, height, width = arrays.shape
    model = registry.build("cnn", channels=channels, height=height, width=width, num_classes=arrays.num_classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(EPOCHS):
        for rows in torch.randperm(TRAINED, generator=generator).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(model(arrays.train_images[rows]), arrays.train_labels[rows]).backward()
            optimizer.step()
        print(f"rlmix: epoch {epoch + 1} of {EPOCHS}", file=sys.stderr, flush=True)
    model.eval()
    with torch.no_grad():
        hits = [
            (model(images).argmax(1) == labels).float()
            for images, labels in zip(
                arrays.test_images.split(500), arrays.test_labels.split(500), strict=True
            )
        ]  # fmt: skip
    return model, float(torch.cat(hits).mean())


def inner_solvers(side: int, partitions: int) -> dict[str, Inner]:
    """Return the solvers by name; full search stands for the compiled one, which finds the same energy."""
    chances = torch.rand(partitions, 8, side * side, generator=torch.Generator().manual_seed(0))
    return {
        "gco": by_graph_cuts(side),
        "exact": Exact(side, side, PARTITION, CPU),
        "icm": Multistart(side, side, chances),
        "compiled": by_full_search(side),
    }


def described(instance: Instance, shown: Tensor, side: int) -> dict[str, Tensor]:
    """Return the energies of every partition and what its outputs look like, [P] each."""
    parts = energy_parts(instance, shown, side, side)
    inputs = torch.arange(shown.shape[1])
    shares = (shown.unsqueeze(-1) == inputs).double().mean(3)
    use = shares.sum((1, 2)) / side**2
    return {
        **dict(zip(PART_NAMES, parts, strict=True)),
        "E_0 (no threshold, A = I)": parts[0] + parts[1] + parts[2],
        "E_t": parts[0] + parts[1] + parts[3],
        "inputs an output": (shares.sum(2) > 0).double().sum(2).mean(1),
        "cells by halves": (shown[..., 0] != shown[..., 1]).double().mean((1, 2)),
        "least use of an input, images": use.amin(1),
        "most use of an input, images": use.amax(1),
    }


def timed(run: Callable[[], object]) -> float:
    """Return the milliseconds of processor time that a call takes, the best of five."""
    taken = []
    for _ in range(5):
        start = time.thread_time()
        run()
        taken.append(1e3 * (time.thread_time() - start))
    return min(taken)


def mean_and_error(values: Tensor) -> str:
    """Return the mean over partitions and its standard error."""
    return f"{float(values.mean()):.4g} +- {float(values.std() / len(values) ** 0.5):.2g}"


def measure(model: nn.Module, arrays: data.Arrays, side: int, threshold_rule: Any) -> dict[str, Any]:
    """Solve the same problems with every solver and return what came out, by solver."""
    method = CoMixup(grid=side, threshold_rule=threshold_rule)
    problems = []
    for batch in range(BATCHES):
        rows = slice(batch * BATCH, (batch + 1) * BATCH)
        maps = saliency.input_gradient(model, arrays.train_images[rows], arrays.train_labels[rows])
        problems += method.problems(MixInputs(BATCH, *arrays.shape[1:], saliency=maps), Streams([batch]))
    figures: dict[str, Any] = {}
    for name, inner in inner_solvers(side, BATCH // PARTITION).items():
        found, gap = [], []
        for problem in problems:
            shown, met = recorded(problem.instance, problem.start, inner)
            found.append(described(problem.instance, shown, side))
            gap.append(gaps(met, side))
        joined, first = torch.cat(gap), problems[0]
        visit = compiled(side, side) if name == "compiled" else one_by_one(inner)
        figures[name] = {
            "inner problems": len(joined),
            "solved exactly": round(float((joined < 1e-9).double().mean()), 5),
            "mean gap": f"{float(joined.mean()):.2g}",
            "largest gap": f"{float(joined.max()):.2g}",
            "milliseconds a batch": round(timed(lambda: solve(first.instance, first.start, visit)), 1),  # noqa: B023
            **{key: mean_and_error(torch.cat([one[key] for one in found])) for key in found[0]},
        }
        print(f"rlmix: {side}x{side}, {threshold_rule}, {name}: {figures[name]}", file=sys.stderr, flush=True)
    return figures


def memory() -> float:
    """Return by how many MB the largest size of the process grows when one batch's plan is drawn."""
    maps, method = blobs(BATCH), CoMixup()
    method.plan(MixInputs(4, PIXELS, PIXELS, saliency=maps[:4]), Streams([0]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    method.plan(MixInputs(BATCH, PIXELS, PIXELS, saliency=maps), Streams([0]))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> int:
    """Measure, print and keep."""
    torch.set_num_threads(1)
    where = report.environment(["python", "-m", "benchmarks.comixup_energies"])
    # First, because the size that the process reaches with the images would hide it.
    grown = memory()
    arrays = data.load("cifar100")
    model, accuracy = trained(arrays)
    runs = {
        f"{side} x {side} grid, {rule} threshold": measure(model, arrays, side, rule)
        for side, rule in ((4, "hard"), (4, "soft"), (2, "hard"))
    }
    where |= {
        "data": f"CIFAR-100, {BATCHES} batches of {BATCH} training images, partitions of {PARTITION}",
        "keys": f"0 to {BATCHES - 1}, one a batch",
        "network": f"cnn, Adam 0.002, {EPOCHS} epochs of {TRAINED} images, seed 0, test accuracy {accuracy:.3f}",
        "memory a draw of a batch adds, MB": round(grown, 1),
    }
    stem = report.ROOT / "benchmarks" / "results" / f"{report.file_name(where)}-comixup-energies"
    stem.with_suffix(".json").write_text(json.dumps({"environment": where, "runs": runs}, indent=1) + "\n", "utf-8")
    lines = [
        f"# Co-Mixup's energies, {where['date'][:10]}",
        "",
        *(f"- {name}: {value}" for name, value in where.items()),
    ]
    lines += ["", "Means over partitions with their standard errors; times are of the processor, the best of five."]
    for title, figures in runs.items():
        lines += ["", f"## {title}", "", "| | " + " | ".join(figures) + " |", "|---|" + "---:|" * len(figures)]
        keys = next(iter(figures.values()))
        lines += [f"| {key} | " + " | ".join(str(one[key]) for one in figures.values()) + " |" for key in keys]
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n", "utf-8")
    print(f"rlmix: written {stem}.md and .json", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
