"""The card of a trained model: data, licence, settings and figures, filled in from the run."""

from __future__ import annotations

from jlm_cli.records import Json, dump

_FIGURES = {
    "agreement": "agreement with the teacher",
    "f1": "macro F1",
    "consistency": "swap consistency",
    "bias_first": "bias toward the first answer",
    "bias_second": "bias toward the second answer",
    "ordering": "ordering of the expected scores",
}


def model_card(name: str, run: Json) -> str:
    """Markdown with the front matter that model hubs read."""
    sections = [
        _front_matter(run),
        f"# {name}",
        "A judge of language-model answers: it reads a question and the answers to it, and "
        f"writes their scores first. Trained by `jlm train` from `{run['base']}`.",
        "## Use",
        f"    jlm judge pairs.jsonl -m {name} --swap",
        "## Data",
        _sources(run),
        "## Figures",
        _figures(run),
        "## Settings",
        _settings(run),
        "## What it must not be used for",
        "Its scores follow those of its teacher, faults included. Do not take them as facts "
        "about an answer, for decisions about people, or as the only judge of a published "
        "comparison; look at its swap consistency on your own data first.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(run: Json) -> str:
    base = dump(run["base"]).decode()
    name = dump(run["licence"] or "see below").decode()
    return (
        f"---\nbase_model: {base}\nlicense: other\nlicense_name: {name}\n"
        "library_name: transformers\n"
        "pipeline_tag: text-generation\ntags: [judge, jlm]\n---"
    )


def _sources(run: Json) -> str:
    lines = ["| file | rows | used | SHA-256 |", "|---|---|---|---|"]
    lines += [
        f"| {_cell(one['file'])} | {one['rows']} | {one['used']} | `{one['sha256'][:16]}…` |"
        for one in run["sources"]
    ]
    for reason, count in run["left_out"].items():
        lines.append(f"\nLeft out, {reason}: {count}.")
    licence = run["licence"] or "not stated: the terms of the data and of the base hold"
    return "\n".join(lines) + f"\n\nLicence of the data: {licence}."


def _figures(run: Json) -> str:
    watched, figures = run["watched"], run["figures"]
    lines = [
        f"On {watched['rows']} pairs ({watched['from']}), by the weights as they were saved:",
        "",
        "| figure | value | 95 % interval |",
        "|---|---|---|",
    ]
    for key, label in _FIGURES.items():
        if figures.get(key):
            lines.append(f"| {label} | {_number(figures[key]['value'])} | {_ends(figures[key])} |")
    for key, figure in figures.get("baselines", {}).items():
        agreement = figure["agreement"]
        label = f"baseline {key.replace('_', ' ')}: agreement"
        lines.append(f"| {label} | {_number(agreement['value'])} | {_ends(agreement)} |")
    losses = [entry["line_loss"] for entry in run["history"] if "line_loss" in entry]
    if losses:
        lines.append(
            f"\nLoss on a score line, in nats: {losses[0]} at first, {losses[-1]} at the end; "
            f"guessing by frequency alone gives {run['label_entropy']}."
        )
    return "\n".join(lines)


def _ends(figure: Json) -> str:
    low, high = figure["ci95"]
    return "–" if low is None else f"{low} to {high}"


def _settings(run: Json) -> str:
    kept = {k: v for k, v in run["settings"].items() if k not in ("data", "validation")}
    lines = ["| setting | value |", "|---|---|"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in kept.items()]
    lines.append(f"| steps | {run['steps']} |")
    lines.append(f"| weights trained | {run['weights_trained']:,} of {run['weights_total']:,} |")
    return "\n".join(lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
