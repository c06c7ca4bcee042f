"""What coefficients and merges take, beside the paper's Table 6."""

from __future__ import annotations

from pathlib import Path

import sensmerge
from experts import Experts, label
from sensmerge.demo.recipes import METHODS
from sensmerge.files import write_atomically
from sensmerge.models.pickles import unpickling

# The paper's, in seconds, of LLaMA2 7B Math on a processor.
PAPER = {
    "Task-specific coefficients": 151.0,
    "Cross-task coefficients": 113.0,
    "Ties-Merging": 184.0 + 73.0,
}


def measure(folder: Path, models: Path, *, device: str, unpickle: bool) -> str:
    """Calibrate anew and merge by each method into a folder; write the page.

    Args:
        folder: The folder; the merged model in it is replaced by every merge, and stays.
        models: The file of models.
        device: The device that models are measured on.
        unpickle: Whether models that are stored as pickles are read.

    Returns:
        The page.
    """
    experts = Experts.load(models)
    folder.mkdir(parents=True, exist_ok=True)
    with unpickling(folder / "merged", enabled=unpickle):
        recipe = experts.recipe("task_arithmetic", "full")
        calibration = sensmerge.calibrate(recipe, device=device)
        count = len(experts.models)
        taken = {
            "Task-specific coefficients": calibration.seconds["sensitivity"] / count,
            "Cross-task coefficients": calibration.seconds["alignment"],
        }
        for method in METHODS:
            result = sensmerge.merge(
                experts.recipe(method, "full"),
                folder / "merged",
                calibration=calibration,
                overwrite=True,
            )
            taken[label(method)] = result.seconds
    lines = [
        "# Time (Table 6)",
        "",
        f"Task-specific coefficients: the mean of {count} experts. Cross-task coefficients: of all "
        "pairs. Merges: from the experts' files to the merged model's, flushed and hashed. The "
        "paper's are of LLaMA2 7B on a processor, its two steps of TIES added up.",
        "",
        "| | seconds | the paper's |",
        "|---|---:|---:|",
    ]
    for name, seconds in taken.items():
        paper = f"{PAPER[name]:.0f}" if name in PAPER else ""
        lines.append(f"| {name} | {seconds:.1f} | {paper} |")
    text = "\n".join([*lines, ""])
    write_atomically(folder / "timing.md", text)
    return text
