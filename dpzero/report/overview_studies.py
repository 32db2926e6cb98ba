"""Sections of results/README.md for the studies that train no model. `STUDIES` lists them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dpzero.report.overview_text import (
    exponent,
    join,
    origin,
    plain_table,
    rate,
    read_json,
    read_table,
    section,
    value_range,
)
from dpzero.report.quadratic import RANKS
from dpzero.report.table import number


def quadratic(results: Path) -> str:
    """Exponents of the dimension, and the verdicts of their table."""
    exponents = read_table(results / "quadratic/tables/exponents.csv")
    lines = [
        {"effective rank": RANKS.get(rank, rank)}
        | {row["method"]: exponent(row) for row in rows.to_dict("records")}
        for rank, rows in exponents.groupby("task", sort=False)
    ]
    notes = (results / "quadratic/tables/exponents.md").read_text("utf-8").splitlines()
    verdicts = [note.removeprefix("- Verdict. ") for note in notes if note.startswith("- Verdict. ")]
    rest = read_table(results / "quadratic/tables/unfinished.csv")
    rest = rest[rest["dimension"] == rest["dimension"].max()].groupby("method", sort=False).last()
    shares = ", ".join(f"{method} {100 * share:.0f} %" for method, share in rest["remaining"].items())
    verdicts.append(
        f"Gradient that the best setting leaves in coordinates {rest['coordinates'].iloc[0]} at d = "
        f"{rest['dimension'].iloc[0]}, relative to the start: {shares}."
    )
    links = "[exponents](quadratic/tables/exponents.md) · [norms](quadratic/tables/norms.md) · "
    links += (
        "[remaining gradient](quadratic/tables/unfinished.csv) · [figure](../figures/quadratic/quadratic.png)"
    )
    title = "quadratic: exponent of the dimension in the gradient norm, best of the published grid"
    return section(title, plain_table(lines), verdicts, links)


def memory(results: Path) -> str:
    """How predicted peaks grow, and their distance from measured ones."""
    peaks, growth = (read_table(results / f"memory/tables/{name}.csv") for name in ("peaks", "growth"))
    titles = dict(zip(peaks["method"], peaks["title"], strict=True))
    lines = [
        {"method": titles[row["method"]]}
        | {"bytes a parameter, predicted": f"{row['parameters_slope_bytes']:.1f}"}
        | {"MiB an example, predicted": f"{row['batch_size_slope_bytes'] / 2**20:.1f}"}
        for row in growth.to_dict("records")
    ]
    distances = (peaks["measured_peak_bytes"] / peaks["predicted_peak_bytes"] - 1).abs().dropna()
    largest = peaks.loc[peaks[peaks["method"] == "dpzero"]["parameters"].idxmax()]
    bullets = (
        "Slopes of straight lines through predicted peaks: OPT by model size, RoBERTa-large by batch, both "
        "with float32 weights.",
        f"{len(distances)} of {len(peaks)} peaks were measured, too. Largest distance from the prediction: "
        f"{100 * distances.max():.2g} %. {origin(read_json(results / 'memory/tables/provenance.json'))}.",
        f"Predicted for {largest['model']}: a step of DPZero takes "
        f"{largest['predicted_peak_bytes'] / 2**30:,.0f} GiB, weights included.",
    )
    links = "[growth](memory/tables/growth.md) · [peaks](memory/tables/peaks.md) · "
    links += "[published ratios](memory/tables/published.md) · [figure](../figures/memory/memory_by_size.png)"
    return section("memory: predicted peak of a step", plain_table(lines), bullets, links)


def benchmark(results: Path) -> str:
    """Time and memory of a step, batch invariance, precision, ranks."""
    lines, devices, folder = [], [], results / "benchmark/tables"
    for file in sorted(folder.glob("*.json")):
        rows = read_table(file.with_suffix(".csv"))
        devices.append(read_json(file)["provenance"]["device"])
        lines += [
            {"model, batch, lengths": file.stem.rpartition("-float32")[0], "method": row["title"]}
            | {
                "time over two forward passes": "{ratio_median:.2f} ({ratio_min:.2f} to {ratio_max:.2f})".format(
                    **row
                )
            }
            | {"memory over weights (MiB)": f"{row['extra_bytes'] / 2**20:.0f}"}
            for row in rows[rows["name"].isin(STEPS)].to_dict("records")
        ]
    invariance, precision, ranks = (
        read_table(folder / f"{name}.csv") for name in ("invariance", "precision", "ranks")
    )
    by_batch, by_text = (invariance[f"others_move_over_clip_{shape}"].max() for shape in ("batch", "text"))
    errors = [
        f"{100 * row['rms_error_bfloat16'] / row['rms_float32']:.0f} % ({row['model']}, smoothing "
        f"{row['smoothing']:g})"
        for row in precision.to_dict("records")
    ]
    speeds = [
        f"{speed:.1f} with {count}"
        for count, speed in ranks.groupby("ranks")["steps_per_second"].mean().items()
    ]
    bullets = (
        f"When one example leaves a batch, the others move by at most {by_text:g} of the clip with the "
        f"shapes used here, and by up to {by_batch:.2g} with shapes that follow the batch "
        f"([{len(invariance)} settings](benchmark/tables/invariance.csv)).",
        f"With bfloat16 products the projected gradient of an example moves by {', '.join(errors)} "
        "([precision](benchmark/tables/precision.csv)).",
        f"Steps a second by number of ranks, on {join(ranks['cores'])} cores and with equal weights: "
        f"{', '.join(speeds)} ([ranks](benchmark/tables/ranks.csv)).",
    )
    return section(f"benchmark: time and memory of a step on {join(devices)}", plain_table(lines), bullets)


def guarantees(results: Path) -> str:
    """Claims of public implementations: held, refuted, open."""
    rows = read_table(results / "guarantees/tables/guarantees.csv")
    lines = [
        {
            "paper": title,
            "claims": len(some),
            "code as it is": f"{(some['as_it_is'] == 'none').sum()} without any ε",
        }
        | {f"{verdict} if the noise were secret": (some["verdict"] == verdict).sum() for verdict in VERDICTS}
        for title, some in rows.groupby("title", sort=False)
    ]
    worst = rows.loc[(rows["epsilon_at_least"] / rows["claimed_epsilon"]).idxmax()]
    bullets = (
        f"For {(rows['as_it_is'] == 'none').sum()} of {len(rows)} claims no ε holds: public seeds determine "
        "the noise, so an adversary can subtract it.",
        f"If the noise were secret, the largest excess is {worst['title']} on {worst['task']}: claimed ε = "
        f"{worst['claimed_epsilon']:g}, at least {worst['epsilon_at_least']:.1f}.",
        f"Their noise is {value_range(rows['ratio'])} times ours for the same claim with Poisson batches.",
    )
    links = "[every claim](guarantees/tables/guarantees.md) · [figure](../figures/guarantees/guarantees.png)"
    return section(
        "guarantees: what public implementations claim and give", plain_table(lines), bullets, links
    )


def membership(results: Path) -> str:
    """True positives of the stronger attack on mislabelled texts, and the ceiling of the claim."""
    folder = results / "membership/tables"
    rows, level = (
        read_table(folder / "membership.csv"),
        read_json(folder / "membership.json")["false_positive_rate"],
    )
    attacked = rows[(rows["texts"] == "mislabelled") & (rows["attack"] == "lira")]
    lines = [
        {"method": row["title"], f"TPR at {100 * level:g} % FPR, LiRA, mislabelled texts": rate(row)}
        | {"AUC": f"{row['auc']:.3f}", "ceiling of the claim": number(row["ceiling"], ".1%")}
        for row in attacked.to_dict("records")
    ]
    claims = rows[rows["ceiling"].notna()]
    (control,) = attacked[attacked["method"] == "control"].to_dict("records")
    bullets = (
        f"Refuted: {claims['refuted'].sum()} of {len(claims)} claims (method, group of texts, attack). A "
        "weak attack proves nothing.",
        f"Control, the same models with members that nobody trained on: {rate(control)}.",
        "Settings were chosen by first trials on the same pool, MeZO's so that it memorises; ± is over runs "
        "of one pool.",
    )
    links = "[every attack](membership/tables/membership.md) · [figure](../figures/membership/membership.png)"
    return section("membership: inference attacks on the final weights", plain_table(lines), bullets, links)


def accounting(results: Path) -> str:
    """The calibrated noise compared with that of an independent accountant."""
    rows = read_table(results / "accounting/tables/calibration.csv")
    keys = ["mechanism", "sampling", "adjacency"]
    lines = [
        dict(zip(keys, key, strict=True))
        | {"settings": len(some), "largest excess": f"{some['relative_distance'].max():.0e}"}
        for key, some in rows.groupby(keys, sort=False)
    ]
    bullets = (
        f"Relative excess of the calibrated noise over that of an independent accountant in {len(rows)} "
        f"settings: {value_range(rows['relative_distance'], '.0e')}. A negative excess would be too little "
        "noise.",
        f"δ is {value_range(rows['delta'], 'g')}; ε is {value_range(rows['epsilon'].astype(float), 'g')}.",
        f"A calibration took {value_range(rows['seconds'], '.1g')} seconds.",
    )
    return section(
        "accounting: calibrated noise",
        plain_table(lines),
        bullets,
        "[every setting](accounting/tables/calibration.csv)",
    )


def planted(results: Path) -> str:
    """Privacy faults that were planted in the code, and whether a test caught them."""
    rows = read_table(results / "planted/caught.csv")
    lines = [
        {"kind": kind.replace("_", " "), "planted": len(some), "caught": some["caught_by"].notna().sum()}
        for kind, some in rows.groupby("kind", sort=False)
    ]
    bullets = (
        f"{rows['caught_by'].notna().sum()} of {len(rows)} planted faults make a test fail that passes "
        "without them.",
        f"They are in {rows['file'].nunique()} files, and {rows['caught_by'].nunique()} different tests "
        "catch them.",
    )
    return section(
        "planted: privacy faults that tests must catch",
        plain_table(lines),
        bullets,
        "[every fault](planted/caught.csv)",
    )


STUDIES: tuple[Callable[[Path], str], ...] = (
    *(quadratic, memory, benchmark, guarantees, membership, accounting, planted),
)
STEPS = ("dpzero", "mezo", "dp_aggzo", "public", "sgd", "adamw", "dp_sgd_ghost", "dp_sgd_hooks")
VERDICTS = ("held", "refuted", "open")
