"""What each section is called and read from, for the line that stands in its place where it cannot be made."""

from __future__ import annotations

from typing import NamedTuple


class Source(NamedTuple):
    """title: of the section's heading. files: in a run's folder, that it shows."""

    title: str
    files: tuple[str, ...] = ()


SOURCES = {
    "results": Source("Results", ("metrics.csv", "summary.json")),
    "training": Source("Training", ("metrics.csv",)),
    "domains": Source("Domains and clients", ("metrics.csv", "clients.csv", "record/partition.json")),
    "trust": Source("Privacy and bad clients", ("metrics.csv", "clients.csv", "ledger.jsonl", "summary.json")),
    "clients": Source("Who holds what", ("record/partition.json", "record/samples")),
    "aggregation": Source("Aggregation", ("metrics.csv", "record/layers.csv")),
    "update": Source("Drift, spectra, effective rank", ("metrics.csv", "record/spectra.csv")),
    "start": Source("Diagnostics of the start", ("diagnostics.csv",)),
    "cost": Source("Time, bytes, memory", ("record/timing.csv", "metrics.csv", "summary.json")),
    "ledger": Source("Ledger of faults", ("ledger.jsonl",)),
    "provenance": Source("Provenance", ("record/provenance.json", "config.yaml", "summary.json", "ledger.jsonl")),
}


def source_of(module: str) -> Source:
    """Of the section that a module makes; one that is not listed is called as its module is."""
    return SOURCES.get(module, Source(module.replace("_", " ").capitalize()))
