"""From a sweep to its tables and figures. Wiring only: what runs is in dpzero/sweeps/NAME.yaml.

snakemake --cores all                                           the sweep `quick`
snakemake --cores all --config sweep=quick-lm methods='[dpzero, mezo]' epsilons='[2]' seeds='[0]'
snakemake --cores all --config sweep=NAME data_dir=FOLDER       task rows from JSON lines (model_dir: weights)
snakemake --cores all --config gpu_share=3                      up to three runs on one GPU, where its memory allows
snakemake --cores 1 --config device=cuda:0,cuda:1               a model larger than one GPU: its layers over several
snakemake --workflow-profile dpzero/profiles/slurm   on a cluster
snakemake --cores all partial                                   tables and figures of the runs that exist
snakemake --unlock                                              after one that was killed; then the command with --rerun-incomplete
"""

import json
import os
import sys
from pathlib import Path

from snakemake.logging import logger
from snakemake.utils import min_version

min_version("9.0")
sys.path.insert(0, workflow.basedir)

from dpzero.errors import UsageError, let_every_print_pass
from dpzero.plan import cost, sweep
from dpzero.cli.workflow import (
    Announcement,
    axes,
    hand_on,
    say_what_a_lock_means,
)
from dpzero.report import KINDS, figure_files, table_files

let_every_print_pass()
SWEEP = str(config.get("sweep", "quick"))
try:
    KIND = sweep.kind(SWEEP)
    DEVICE = hand_on(config, workflow.basedir, workflow.rundir, sweep.gpu_share(SWEEP))
    NARROWED = {key: value for key, value in config.items() if key != "sweep"}
    CELLS = sweep.load(SWEEP, **NARROWED)
except UsageError as error:
    print(f"dpzero: {error}", file=sys.stderr)
    os._exit(2)

RESULTS = f"results/{SWEEP}"
FIGURE_FOLDER = f"figures/{SWEEP}"
CAPTIONS = f"{workflow.basedir}/dpzero/report/captions"
RECORDS = [f"{RESULTS}/runs/{run}.json" for run in CELLS]
PLAN = f"{RESULTS}/cells.txt"  # by name: rules.plan.output beside RECORDS takes Snakemake time quadratic in the runs
ASSETS = f"{RESULTS}/assets/{{task}}/{{model}}.json"
LANGUAGE = KIND == "language"  # the kind that needs weights, data and a GPU
TABLES, FIGURES, _ = KINDS[KIND]
TABLE_PATHS = [f"{RESULTS}/tables/{name}" for name in table_files(KIND, CELLS)]
FIGURE_PATHS = [f"{FIGURE_FOLDER}/{name}" for name in figure_files(KIND)]
PACE = cost.speed(list(CELLS.values())) if LANGUAGE else cost.PUBLISHED
TOKENS = sweep.tokens(SWEEP)  # read once: a thousand runs ask for them
ENVIRONMENT = f"{workflow.basedir}/dpzero/environment.yaml"
if workflow.is_main_process:
    say_what_a_lock_means()
    logger.addHandler(Announcement(workflow, SWEEP, CELLS))


localrules:
    all,
    assets,
    plan,
    tables,
    figures,
    partial,


rule all:
    input:
        RECORDS,  # by name: tables that came with the repository are no reason not to run
        TABLE_PATHS,
        FIGURE_PATHS,


rule assets:
    output:
        ASSETS,
    log:
        f"{RESULTS}/logs/{{task}}/{{model}}/assets.log",
    conda:
        ENVIRONMENT
    params:
        sweep=SWEEP,
    message:
        "{wildcards.task} for {wildcards.model}: rows and weights, downloaded, verified and tokenized once"
    shell:
        '"$DPZERO_PYTHON" -P -m dpzero assets --sweep {params.sweep:q} --tasks {wildcards.task:q} --models {wildcards.model:q} '
        "--out {output:q} 2>&1 | tee -i {log:q}"


rule run:
    input:
        lambda wildcards: (
            [ancient(ASSETS.format(**CELLS[wildcards.run]))] if LANGUAGE else []
        ),
    output:
        f"{RESULTS}/runs/{{run}}.json",
    log:
        f"{RESULTS}/logs/{{run}}.log",
    wildcard_constraints:
        run=r".+/seed-\d+",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        gpu=max(1, DEVICE.count("cuda")) if LANGUAGE else 0,
        mem_mb=lambda wildcards, attempt: attempt
        * cost.host_megabytes(CELLS[wildcards.run]),
        runtime=lambda wildcards, attempt: attempt
        * cost.minutes(TOKENS, CELLS[wildcards.run], PACE),
    params:
        cell=lambda wildcards: json.dumps(CELLS[wildcards.run], sort_keys=True),
    message:
        "{wildcards.run}"
    shell:
        '"$DPZERO_PYTHON" -P -m dpzero run --spec {params.cell:q} --out {output:q} --threads {threads} --device "$DPZERO_DEVICE" '
        "2>&1 | tee -ia {log:q}"


rule plan:
    output:
        PLAN,
    log:
        f"{RESULTS}/logs/plan.log",
    conda:
        ENVIRONMENT
    params:
        runs=list(CELLS),  # others make the tables again
        sweep=SWEEP,
        narrowed=axes(NARROWED),
    shell:
        '"$DPZERO_PYTHON" -P -m dpzero cells --sweep {params.sweep:q} {params.narrowed:q} --out {output:q} 2>&1 | tee -i {log:q}'


rule tables:
    input:
        cells=PLAN,
        records=RECORDS,
    output:
        report(
            [path for path in TABLE_PATHS if path.endswith(".md")],
            category="Tables",
            caption=f"{CAPTIONS}/tables.rst",
        ),
        [path for path in TABLE_PATHS if not path.endswith(".md")],
    log:
        f"{RESULTS}/logs/tables.log",
    conda:
        ENVIRONMENT
    params:
        sweep=SWEEP,
        folder=lambda wildcards, output: Path(output[0]).parent,
    message:
        f"tables of {SWEEP}"
    shell:
        '"$DPZERO_PYTHON" -P -m dpzero tables --sweep {params.sweep:q} --cells {input.cells:q} --out {params.folder:q} 2>&1 '
        "| tee -i {log:q}"


rule figures:
    input:
        cells=PLAN,
        records=RECORDS,
    output:
        [
            report(
                f"{FIGURE_FOLDER}/{name}.png",
                category="Figures",
                caption=f"{CAPTIONS}/{name}.rst",
            )
            for name in FIGURES
        ],
        [path for path in FIGURE_PATHS if path.endswith(".pdf")],
    log:
        f"{RESULTS}/logs/figures.log",
    conda:
        ENVIRONMENT
    params:
        sweep=SWEEP,
        folder=lambda wildcards, output: Path(output[0]).parent,
    message:
        f"figures of {SWEEP}"
    shell:
        '"$DPZERO_PYTHON" -P -m dpzero figures --sweep {params.sweep:q} --cells {input.cells:q} --out {params.folder:q} 2>&1 '
        "| tee -i {log:q}"


rule partial:
    input:
        cells=PLAN,
    log:
        f"{RESULTS}/logs/partial.log",
    conda:
        ENVIRONMENT
    params:
        sweep=SWEEP,
        tables=f"{RESULTS}/tables",
        figures=FIGURE_FOLDER,
    message:
        "tables and figures of the runs that exist"
    shell:
        'for what in tables figures; do "$DPZERO_PYTHON" -P -m dpzero $what --sweep {params.sweep:q} --cells {input.cells:q} '
        "--out $(test $what = tables && echo {params.tables:q} || echo {params.figures:q}); done 2>&1 | tee -i {log:q}"


onstart:
    workflow.scheduler.keepgoing = True  # what fails stops nothing but what needs it


onsuccess:
    table = Path(f"{RESULTS}/tables/{TABLES[0]}.md")
    if table.exists():
        print(f"\n{table.read_text('utf-8')}\nTables:  {RESULTS}/tables")
        print(
            "\n".join(
                f"Figure:  {path}" for path in FIGURE_PATHS if path.endswith(".png")
            )
        )


onerror:
    print(
        f"\nSome runs are missing (their logs: {RESULTS}/logs): the same command goes on with them. Tables of what exists: add "
        "`partial` to the command. Should snakemake be killed: `snakemake --unlock` first, then --rerun-incomplete."
    )
