"""From a sweep to its tables and figures. Wiring only: what runs is in dpzero/sweeps/NAME.yaml.

snakemake --cores all                                           the sweep `quick`
snakemake --cores all --config sweep=adapters-lm methods='[dpzero, mezo]' epsilons='[2]' seeds='[0]'
snakemake --cores all --config sweep=my/sweep.yaml              your own; its `include` names folders of tasks, models and methods
snakemake --cores all --config sweep=NAME steps=20 train_examples=64     a rehearsal, in results/NAME-rehearsal
snakemake --cores all --config sweep=NAME data_dir=FOLDER       task rows from JSON lines (model_dir: weights)
snakemake --cores all --config gpu_share=3                      up to three runs on one GPU, if its memory allows
snakemake --cores all --config gpus=2                           a model larger than one GPU: its layers over two
snakemake --workflow-profile dpzero/profiles/slurm              on a cluster
snakemake --cores all partial                                   tables and figures of the runs that exist
snakemake --report report.html                                  one file with tables, figures, statement (or report.zip)
snakemake --unlock                                              after one that was killed; then the command with --rerun-incomplete
"""

import json
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")
sys.path.insert(0, workflow.basedir)

from dpzero.cli.snakemake_support import PACKAGE, Plan

SWEEP = Plan.load(config, workflow)
RESULTS = SWEEP.results
CELLS = f"{RESULTS}/cells.txt"  # by name: rules.plan.output beside the records takes Snakemake time quadratic in the runs
ASSETS = f"{RESULTS}/assets/{{task}}/{{model}}.json"
CAPTIONS = f"{PACKAGE}/report/captions"
ENVIRONMENT = f"{PACKAGE}/environment.yaml"


report: Path(SWEEP.landing).absolute()


localrules:
    all,
    assets,
    plan,
    tables,
    figures,
    pages,
    partial,


rule all:
    input:
        SWEEP.records,  # by name: tables that came with the repository are no reason not to run
        SWEEP.table_paths,
        SWEEP.figure_paths,
        SWEEP.landing,


rule assets:
    output:
        ASSETS,
    log:
        f"{RESULTS}/logs/{{task}}/{{model}}/assets.log",
    conda:
        ENVIRONMENT
    message:
        "{wildcards.task} for {wildcards.model}: rows and weights, downloaded, verified and tokenized once"
    shell:
        '"$DPZERO_PYTHON" -P -m dpzero assets --sweep "$DPZERO_SWEEP" $DPZERO_LIMITS --tasks {wildcards.task:q} '
        "--models {wildcards.model:q} --out {output:q} >{log:q} 2>&1"


rule run:
    input:
        lambda wildcards: SWEEP.inputs(wildcards.run, ASSETS, ancient),
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
        gpu=SWEEP.gpus,
        mem_mb=lambda wildcards, attempt: attempt * SWEEP.host_megabytes(wildcards.run),
        runtime=lambda wildcards, attempt: attempt * SWEEP.minutes(wildcards.run),
    params:
        cell=lambda wildcards: json.dumps(SWEEP.cells[wildcards.run], sort_keys=True),
        tries=lambda wildcards: f"{RESULTS}/runs",  # records that decide the settings of others
    message:
        "{wildcards.run}"
    shell:
        '"$DPZERO_PYTHON" -P -m dpzero run --spec {params.cell:q} --tries {params.tries:q} --out {output:q} --threads {threads} --device "$DPZERO_DEVICE" '
        '--gpus "$DPZERO_GPUS" >>{log:q} 2>&1'


rule plan:
    output:
        CELLS,
    log:
        f"{RESULTS}/logs/plan.log",
    conda:
        ENVIRONMENT
    params:
        runs=list(SWEEP.cells),  # other runs make the tables again
        sweep=SWEEP.sweep,
        narrowed=SWEEP.narrowed,
    shell:
        '"$DPZERO_PYTHON" -P -m dpzero cells --sweep {params.sweep:q} {params.narrowed:q} --out {output:q} '
        ">{log:q} 2>&1"


rule tables:
    input:
        cells=CELLS,
        records=SWEEP.records,
    output:
        SWEEP.table_paths,
    log:
        f"{RESULTS}/logs/tables.log",
    conda:
        ENVIRONMENT
    params:
        command="dpzero tables",
        sweep=SWEEP.sweep,
        narrowed=SWEEP.narrowed,
        folder=lambda wildcards, output: Path(output[0]).parent,
    message:
        "{params.command} --sweep {params.sweep}"
    shell:
        '"$DPZERO_PYTHON" -P -m {params.command} --sweep {params.sweep:q} {params.narrowed:q} --cells {input.cells:q} '
        "--out {params.folder:q} "
        ">{log:q} 2>&1"


use rule tables as figures with:
    output:
        [
            report(
                f"{SWEEP.figures}/{name}.png",
                category="Figures",
                caption=f"{CAPTIONS}/{name}.rst",
                labels=SWEEP.figure_labels(name),
            )
            for name in SWEEP.figure_names
        ],
        [path for path in SWEEP.figure_paths if not path.endswith(".png")],
    log:
        f"{RESULTS}/logs/figures.log",
    params:
        command="dpzero figures",
        sweep=SWEEP.sweep,
        narrowed=SWEEP.narrowed,
        folder=lambda wildcards, output: Path(output[0]).parent,


rule pages:
    input:
        cells=CELLS,
        tables=SWEEP.table_paths,
        figures=[path for path in SWEEP.figure_paths if path.endswith(".png")],
    output:
        SWEEP.landing,
        [
            report(
                path,
                category=category,
                caption=f"{CAPTIONS}/tables.rst",
                labels=labels,
            )
            for path, category, labels in SWEEP.pages
        ],
    log:
        f"{RESULTS}/logs/pages.log",
    conda:
        ENVIRONMENT
    params:
        sweep=SWEEP.sweep,
        narrowed=SWEEP.narrowed,
        tables=lambda wildcards, input: Path(input.tables[0]).parent,
        folder=lambda wildcards, output: Path(output[0]).parent,
    message:
        "the pages of snakemake --report"
    shell:
        '"$DPZERO_PYTHON" -P -m dpzero pages --sweep {params.sweep:q} {params.narrowed:q} --cells {input.cells:q} '
        "--tables {params.tables:q} --figures {input.figures:q} --out {params.folder:q} >{log:q} 2>&1"


rule partial:
    input:
        cells=CELLS,
    log:
        f"{RESULTS}/logs/partial.log",
    conda:
        ENVIRONMENT
    params:
        sweep=SWEEP.sweep,
        narrowed=SWEEP.narrowed,
        tables=f"{RESULTS}/tables",
        figures=SWEEP.figures,
    message:
        "tables and figures of the runs that exist"
    shell:
        'for what in tables figures; do "$DPZERO_PYTHON" -P -m dpzero $what --partial --sweep {params.sweep:q} {params.narrowed:q} '
        "--cells {input.cells:q} --out $(test $what = tables && echo {params.tables:q} || echo {params.figures:q}); done >{log:q} 2>&1"


onstart:
    workflow.scheduler.keepgoing = (
        True  # a run that fails stops nothing but what needs it
    )


onsuccess:
    SWEEP.print_results()


onerror:
    SWEEP.print_incomplete()
