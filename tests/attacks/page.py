"""What `docs/attacks.md` says of the rows here, held against the table: titles, levels, layers."""

import pathlib

from rows import ROWS

WORDS = {"view": "`RootDirectory=` and its binds", "tree": "owner and ACL", "nft": "nftables", "policy": "D-Bus policy, polkit rule", "User": "a user of its own"}
LEVELS = {"blocked": "stopped", "works": "**not promised**", "either": "not promised"}


def differences(path, scenarios):
    """One line for each row that the page tells otherwise."""
    lines = [line.strip("|").split(" | ") for line in pathlib.Path(path).read_text().splitlines() if line.endswith("| `tests/attacks` |")]
    page = {cells[0].strip(): [cell.strip() for cell in cells[1:5]] for cells in lines}
    table = {ident: [row.title, LEVELS[row.zero], LEVELS[row.one], ", ".join(WORDS.get(l, f"`{l}=`") for l in row.layers) or "nothing"] for ident, row in ROWS.items()}
    table.update({ident: [title, "stopped", "stopped", held] for ident, (title, held, _) in scenarios.items()})
    return [f"{ident}: {page.get(ident)} where the table has {table.get(ident)}" for ident in sorted(page.keys() | table.keys()) if page.get(ident) != table.get(ident)]
