"""Whether the service keeps its size: `python -m benchmarks.service_soak --minutes 10`.

Writers of every kind work on `rlmix serve` without a pause; its memory, its write-ahead log and its open files are
read every two seconds. Ends with 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from benchmarks import report
from benchmarks.decision import policy
from benchmarks.storm import PROJECT, Reader, Service, Storm
from rlmix.policy.artifact import save

WARM_UP = 0.2
READ_SECONDS = 2.0
SLOPE, LOG, FILES = 1.0, 64.0, 8
"""Goals: MiB a minute at most after the first fifth; MiB of the write-ahead log; open files more or fewer."""


def sample(service: Service, log: Path) -> dict[str, float]:
    """Return memory and the write-ahead log in MiB, and the number of open files."""
    place = Path(f"/proc/{service.pid}")
    pages = int((place / "statm").read_text(encoding="utf-8").split()[1])
    return {
        "memory": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "log": log.stat().st_size / 2**20 if log.exists() else 0.0,
        "files": float(len(list((place / "fd").iterdir()))),
    }


def read_on(service: Service, stopping: threading.Event) -> None:
    """Look at lists and pages, as people and monitors do."""
    connection = service.connection()
    reader = Reader(connection)
    while not stopping.wait(0.2):
        for path in (f"{PROJECT}/runs?limit=100", "/metrics", "/readyz", "/", "/v1/projects/default/runs/none"):
            reader.get(path)
    connection.close()


def soak(minutes: float, writers: int) -> dict[str, Any]:
    """Return what was read, and what it comes to."""
    with tempfile.TemporaryDirectory(prefix="rlmix-soak-") as name:
        folder = Path(name)
        save(folder / "policy", policy(8))
        service = Service(folder, f"sqlite:///{folder}/soak.db", folder / "policy")
        storm, stopping, samples = Storm(service, folder / "policy", writers), threading.Event(), []
        looking = threading.Thread(target=read_on, args=(service, stopping))
        with storm, Progress(transient=True) as progress:
            storm.begin()
            looking.start()
            shown = progress.add_task("soaking", total=60 * minutes)
            begun = time.monotonic()
            while (passed := time.monotonic() - begun) < 60 * minutes:
                samples.append({"seconds": passed, **sample(service, folder / "soak.db-wal")})
                progress.update(shown, completed=passed)
                time.sleep(READ_SECONDS)
            stopping.set()
            looking.join()
            found = storm.end()
        assert found.wrong == ([], [], [], []), found.wrong
    return {"samples": samples, "decisions": found.decided, "feedback": found.reported, **figures(samples)}


def figures(samples: list[dict[str, float]]) -> dict[str, float]:
    """Return the slope of the memory in MiB a minute, and the largest of everything, without the warm-up."""
    late = samples[int(WARM_UP * len(samples)) :]
    minutes, memory = (np.array([one[name] for one in late]) for name in ("seconds", "memory"))
    files = [one["files"] for one in late]
    return {
        "slope": float(np.polyfit(minutes / 60, memory, 1)[0]),
        "memory": float(memory.max()),
        "log": max(one["log"] for one in samples),
        "files_least": min(files),
        "files_most": max(files),
    }


def main() -> int:
    """Soak, print and keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service_soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--out", type=Path, default=report.ROOT / "benchmarks" / "results", help="folder of the result")
    chosen = parser.parse_args()
    where = report.environment(["python", "-m", "benchmarks.service_soak", *sys.argv[1:]])
    found = soak(chosen.minutes, chosen.writers)
    met = {
        f"memory grows by at most {SLOPE:g} MiB a minute": found["slope"] <= SLOPE,
        f"the write-ahead log stays below {LOG:g} MiB": found["log"] <= LOG,
        f"open files stay within {FILES}": found["files_most"] - found["files_least"] <= FILES,
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    target = chosen.out / f"{report.file_name(where)}-service-soak.json"
    target.write_text(json.dumps({"environment": where, "goals": met, **found}, indent=1) + "\n", "utf-8")
    print(", ".join(f"{name} {value:.2f}" for name, value in found.items() if name != "samples"))
    for goal, reached in met.items():
        print(f"{'met' if reached else 'MISSED'}: {goal}")
    print(f"rlmix: written {target}", file=sys.stderr)
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
