#!/usr/bin/env python3
"""One row of bench/results/NAME.csv from a pair of runs: checks that both did the same work, then appends.

Exit status 1, and no row, when a step's losses differ by more than the tolerance.
"""
import argparse
import csv
import json
import pathlib
import statistics
import sys

FIELDS = ["date", "commit", "machine", "threads", "work", "round", "attune_tokens_per_s", "peer_tokens_per_s", "ratio",
          "attune_rss_mb", "peer_rss_mb", "largest_loss_difference", "load", "peer"]


def read_attune(path, warmup):
    steps = [s for s in map(json.loads, open(path)) if "loss" in s]
    return {
        "losses": [s["loss"] for s in steps],
        "tokens_per_s": statistics.median(s["tokens_per_s"] for s in steps[min(warmup, len(steps) - 1) :]),
        "rss": max(s["rss_bytes"] for s in steps),
    }


def read_peer(path):
    summary = [json.loads(line) for line in open(path) if line.startswith("{")][-1]
    return {"losses": summary["losses"], "tokens_per_s": summary["tokens_per_s"], "rss": summary["peak_rss_bytes"],
            "name": "torch {torch} {mode}, adapters {adapter_dtype}".format(mode="compiled" if summary["compile"] else "eager", **summary)}


def largest_difference(ours, theirs):
    """Relative; infinite when the two did not make the same steps."""
    if len(ours) != len(theirs) or not ours:
        return float("inf")
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs))


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--attune", required=True, help="metrics.jsonl of the run")
    p.add_argument("--peer", required=True, help="what the peer printed")
    p.add_argument("--csv", required=True)
    p.add_argument("--warmup-steps", type=int, default=2)
    p.add_argument("--tolerance", type=float, default=0.01, help="of a step's loss, relative: both round to bf16 in other places")
    for name in ("date", "commit", "machine", "threads", "work", "round", "load"):
        p.add_argument(f"--{name}", required=True)
    a = p.parse_args()

    ours, peer = read_attune(a.attune, a.warmup_steps), read_peer(a.peer)
    difference = largest_difference(ours["losses"], peer["losses"])
    if not difference <= a.tolerance:
        sys.exit(f"the runs did different work: losses {ours['losses']} and {peer['losses']}")
    row = {k: getattr(a, k) for k in ("date", "commit", "machine", "threads", "work", "round", "load")}
    row.update(attune_tokens_per_s=f"{ours['tokens_per_s']:.1f}", peer_tokens_per_s=f"{peer['tokens_per_s']:.1f}",
               ratio=f"{ours['tokens_per_s'] / peer['tokens_per_s']:.3f}", attune_rss_mb=round(ours["rss"] / 1e6),
               peer_rss_mb=round(peer["rss"] / 1e6), largest_loss_difference=f"{difference:.2e}", peer=peer["name"])
    new = not pathlib.Path(a.csv).exists()
    with open(a.csv, "a", newline="") as f:
        out = csv.DictWriter(f, FIELDS)
        if new:
            out.writeheader()
        out.writerow(row)
    print(f"round {a.round}: attune {row['attune_tokens_per_s']} tok/s, peer {row['peer_tokens_per_s']} tok/s, ratio {row['ratio']}, "
          f"losses agree within {row['largest_loss_difference']}")


if __name__ == "__main__":
    main()
