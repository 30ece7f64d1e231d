"""Write what `optimise.py` found where the packages keep it: times in core, coefficients in itoflow-samplers.

python publish.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
TIMES = ROOT / "core/itoflow/optimal.json"
COEFFICIENTS = ROOT / "plugins/samplers/src/itoflow_samplers/auto.json"


def rounded(value: Any) -> Any:
    """Eight significant digits."""
    return [rounded(v) for v in value] if isinstance(value, list) else float(f"{value:.8g}")


def write(path: Path, entries: dict[str, Any]) -> None:
    """One line for each number of evaluations."""
    lines = ",\n".join(f'"{n}": {json.dumps(entry)}' for n, entry in entries.items())
    path.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


def main() -> None:
    """Both files."""
    found = json.loads(Path(__file__).with_name("optimal.json").read_text(encoding="utf-8"))
    write(TIMES, {n: rounded(entry["w"]) for n, entry in found.items()})
    write(COEFFICIENTS, {n: {"bend": rounded(e["phi"]), "delta": rounded(e["delta"])} for n, e in found.items()})


if __name__ == "__main__":
    main()
