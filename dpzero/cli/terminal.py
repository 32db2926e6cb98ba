"""What `snakemake --cores all` shows: a line a run, a line of progress with the time left, and every error.

Snakemake's own lines and the words of each job are in the log files. An option that asks Snakemake for more or for less
(--verbose, --printshellcmds, --quiet, --logger and the like) and `snakemake -n` show Snakemake's lines as they are. A dry run
of the verbs `sweep` and `compare` is one line: how many runs there are, exist and are to be made, and what these cost.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from . import estimate

DEFAULT_HANDLER = "DefaultStreamHandler"  # Snakemake's name for what writes to the terminal
HIDDEN_EVENTS = {  # of Snakemake's log: here, other lines say it
    *("WORKFLOW_STARTED", "RUN_INFO", "RESOURCES_INFO", "PROGRESS"),
    *("JOB_INFO", "JOB_STARTED", "JOB_FINISHED", "JOB_ERROR"),
}
HIDDEN_LINES = (  # beginnings of lines without an event
    *("Assuming unrestricted shared filesystem", "Building DAG of jobs", "Using shell", "Conda environments"),
    *("Select jobs to execute", "Elapsed time", "Singularity containers"),
)
SHELL_ERROR = "RuleException:\nCalledProcessError"  # the whole command of a job; its JOB_ERROR follows
NOTHING = "Nothing to be done"  # the beginning of Snakemake's line
SUMMARY = "DPZERO_SUMMARY"  # environment variable: the one line of a dry run
REFRESH_SECONDS = 5
LAST_LINES = 3  # of the log of a job that failed


class Terminal(logging.Handler):
    """Takes the place of Snakemake's lines on standard error, unless the options ask for those.

    Args:
        workflow: Snakemake's workflow.
        plan: the `snakemake_support.Plan` of the sweep.
    """

    def __init__(self, workflow: Any, plan: Any) -> None:
        super().__init__()
        self.workflow, self.plan = workflow, plan
        self.jobs: dict[int, logging.LogRecord] = {}  # by Snakemake's number, as announced
        self.weights: dict[str, float] = {}  # run that is to be made -> its expected share of the time
        self.done: list[str] = []
        self.started = self.last_finish = 0.0  # seconds of a monotonic clock
        self.failed: set[str] = set()  # runs; a second attempt may finish one
        self.bar: tqdm | None = None
        self.speaks = False  # otherwise Snakemake does
        self.summarises = False

    def install(self) -> None:
        """Begin to listen to Snakemake's log."""
        from snakemake.logging import logger

        settings = self.workflow.output_settings
        asked = (settings.quiet, settings.verbose, settings.printshellcmds, settings.debug_dag)
        default = [handler for handler in logger.handlers if handler.get_name() == DEFAULT_HANDLER]
        self.speaks = bool(default) and not any((*asked, settings.show_failed_logs, settings.dryrun))
        self.summarises = bool(default) and settings.dryrun and SUMMARY in os.environ
        if self.speaks:
            default[0].addFilter(is_shown)
        elif self.summarises:
            default[0].addFilter(lambda record: record.levelno > logging.INFO)
        logger.handlers.insert(0, self)  # it takes the bar away before another handler writes

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(getattr(record, "event", None), "name", "")
        if (event == "RUN_INFO" and not self.started) or (
            self.summarises and record.getMessage().startswith(NOTHING)
        ):  # the first event after planning, of a dry run, too
            self.announce()
        if not self.speaks:
            return
        if event == "JOB_INFO":
            self.jobs[record.jobid] = record  # type: ignore[attr-defined]
            if record.rule_name != "run" and record.rule_msg:  # type: ignore[attr-defined]
                self.say(record.rule_msg)  # type: ignore[attr-defined]
        elif event == "JOB_FINISHED" and (job := self.jobs.get(record.job_id)):  # type: ignore[attr-defined]
            if job.rule_name == "run":  # type: ignore[attr-defined]
                self.finish(job.wildcards["run"])  # type: ignore[attr-defined]
        elif event == "JOB_ERROR":
            self.fail(record)
        elif record.levelno >= logging.WARNING and self.bar:
            self.bar.clear()

    def announce(self) -> None:
        """Say how many runs there are, exist and are to be made."""
        jobs = (job for job in self.workflow.dag.needrun_jobs() if job.rule.name == "run")
        name, cells = self.plan.name, self.plan.cells
        new = [job.wildcards.run for job in jobs]
        cost = ""
        if new:
            chosen = [cells[run] for run in new]
            cost = estimate.announcement(self.plan.sweep, chosen, self.workflow.resource_settings.cores)
            if self.summarises and not cost:
                cost = "; how long they take is known when some of them have run"
        text = f"{name}: {len(cells)} runs, {len(cells) - len(new)} exist, {len(new)} to be run{cost}"
        print(text, file=sys.stdout if self.summarises else sys.stderr)
        self.started = time.monotonic()
        if self.speaks and new:
            known = {run: self.plan.estimator.run(cells[run])[1] for run in new}
            mean = sum(known.values()) / max(1, sum(map(bool, known.values()))) or 1.0
            self.weights = {run: seconds or mean for run, seconds in known.items()}
            print(f"Logs:    {self.plan.results}/logs", file=sys.stderr)
            self.bar = tqdm(total=len(new), bar_format="{bar:20} {desc}", disable=None, leave=False)
            if not self.bar.disable:
                threading.Thread(target=self.keep_progress, daemon=True).start()

    def finish(self, run: str) -> None:
        """Say what a run has come to, and how far the sweep is."""
        self.done.append(run)
        self.failed.discard(run)
        self.last_finish = time.monotonic()
        shown_below = self.bar is not None and not self.bar.disable
        self.say(f"{run}: {result(self.plan, run)}" + ("" if shown_below else f" ({self.progress()})"))
        if self.bar is not None:
            self.bar.set_description_str(self.progress(), refresh=False)
            self.bar.update()

    def keep_progress(self) -> None:
        """Count the time down while no run finishes."""
        while (bar := self.bar) is not None and not bar.disable:
            bar.set_description_str(self.progress())
            time.sleep(REFRESH_SECONDS)

    def progress(self) -> str:
        """How far the sweep is, and the time left: that of the finished runs, in proportion to expected seconds."""
        count, now = f"{len(self.done)} of {len(self.weights)} runs", time.monotonic()
        done = sum(self.weights.get(run, 0.0) for run in self.done)
        left = sum(seconds for run, seconds in self.weights.items() if run not in {*self.done, *self.failed})
        if not done:
            return f"{count}, {tqdm.format_interval(now - self.started)} so far"
        if left <= 0:
            return count
        seconds = (self.last_finish - self.started) * left / done - (now - self.last_finish)
        return f"{count}, about {tqdm.format_interval(max(0, seconds))} left"

    def fail(self, error: Any) -> None:
        """Say which job failed, with the last lines of its log."""
        job = self.jobs.get(error.jobid)
        name = (job.wildcards or {}).get("run") if job else None  # type: ignore[attr-defined]
        self.failed |= {name} if name else set()
        lines = [f"FAILED   {name or error.rule_name}"]
        for log in map(Path, error.log):
            text = log.read_text("utf-8", "replace") if log.is_file() else ""
            lines += [f"    {line}" for line in text.splitlines() if line.strip()][-LAST_LINES:]
            lines.append(f"    log: {log}")
        lines += [f"    {key}: {value}" for key, value in error.aux.items()]
        self.say("\n".join(lines))

    def close(self) -> None:
        """Take the bar away, for good."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def say(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)


def is_shown(record: logging.LogRecord) -> bool:
    """Whether Snakemake's line stays on the terminal."""
    event = getattr(getattr(record, "event", None), "name", "")
    if event in HIDDEN_EVENTS:
        return False
    text = record.getMessage()
    if text.startswith(SHELL_ERROR):
        return False
    return record.levelno > logging.INFO or not text.startswith(HIDDEN_LINES)


def result(plan: Any, run: str) -> str:
    """The score and the seconds of a run, from its record; why there is no score."""
    try:
        record = json.loads(Path(plan.results, "runs", f"{run}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return "done"  # its record is on a storage that this machine does not see
    words = [] if record.get("status", "ok") == "ok" else [record["status"]]
    metrics = record.get("metrics") or {}
    words += [
        f"{key} {100 * metrics[key]:.1f} %" for key in ("accuracy", "f1") if metrics.get(key) is not None
    ]
    seconds = (record.get("time") or {}).get("wall_seconds")
    words += [f"{seconds:,.0f} s"] if seconds is not None else []
    return ", ".join(words) or "done"
