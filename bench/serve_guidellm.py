"""The same questions asked by guidellm, a load generator that others wrote and that is installed apart from us."""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat.command import UserError


def ask(executable: Path, port: int, questions: Sequence[str], new_tokens: int, streams: int) -> dict[str, float]:
    """Run `guidellm run` once over all questions, so many at a time; rates per second, times in ms, completed requests.

    Of its report (0.8) only those that tell what `serve_client` tells too. Raises UserError when it cannot be started
    or ends with an error.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [json.dumps({"prompt": question}) + "\n" for question in questions]
        (folder / "questions.jsonl").write_text("".join(lines), encoding="utf-8")
        report = folder / "report.json"
        options: dict[str, dict[str, Any]] = {
            "backend": {"kind": "openai_http", "target": f"http://127.0.0.1:{port}", "max_tokens": new_tokens},
            "data": {"kind": "json_file", "path": str(folder / "questions.jsonl")},
            "profile": {"kind": "concurrent", "streams": streams},
            "constraint": {"kind": "max_requests", "count": len(questions)},
            "output": {"kind": "json", "path": str(report)},
        }
        flags = [text for key, value in options.items() for text in (f"--{key}", json.dumps(value))]
        try:
            done = subprocess.run(
                [str(executable), "run", *flags, "--disable-console"],
                cwd=folder, capture_output=True, text=True, check=False,
            )  # fmt: skip
        except OSError as refusal:
            raise UserError(f"--guidellm={executable} cannot be started: {refusal.strerror}") from refusal
        if done.returncode or not report.exists():
            raise UserError(f"guidellm ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        return told(json.loads(report.read_text(encoding="utf-8")))


def told(report: dict[str, Any]) -> dict[str, float]:
    """Figures of the first benchmark in its report."""
    metrics = report["benchmarks"][0]["metrics"]
    first, between = (
        metrics[name]["successful"]["percentiles"] for name in ("time_to_first_token_ms", "inter_token_latency_ms")
    )
    return {
        "completed": metrics["request_totals"]["successful"],
        "tokens_per_second": metrics["output_tokens_per_second"]["successful"]["mean"],
        "first_token_p50_ms": first["p50"],
        "first_token_p99_ms": first["p99"],
        "between_tokens_p50_ms": between["p50"],
        "between_tokens_p99_ms": between["p99"],
    }
