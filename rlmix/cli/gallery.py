"""`rlmix gallery`: a picture of every mix method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """
Examples:

- `rlmix gallery`

- `rlmix gallery --out cutmix.png --methods cutmix,rmix --seed 3`

- `rlmix gallery --images my-photographs`
"""


def gallery(
    out: Annotated[Path, typer.Option(help="The PNG file.")] = Path("gallery.png"),
    images: Annotated[
        Path | None, typer.Option(help="A folder of photographs, instead of those that come with scikit-learn.")
    ] = None,
    methods: Annotated[
        list[str] | None, typer.Option(help="Only these, joined by commas or one at a time. Repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides what is drawn.", min=0)] = 0,
) -> None:
    """Draw every mix method on real photographs.

    Beneath each mix stand lam and the soft label, beside it where each pixel comes from, and the saliency map for the
    methods that look at one.
    """
    from rlmix._files import write_bytes
    from rlmix.monitor.figures import png
    from rlmix.monitor.gallery import bundled_photos, folder_photos, gallery_figure, gallery_methods

    chosen = gallery_methods([name.strip() for part in methods or [] for name in part.split(",") if name.strip()])
    photos = bundled_photos() if images is None else folder_photos(images)
    write_bytes(out, png(gallery_figure(photos, chosen, seed=seed), dpi=110))
    typer.echo(f"{out}: {len(chosen)} methods on {len(photos.labels)} photographs, seed {seed}")
