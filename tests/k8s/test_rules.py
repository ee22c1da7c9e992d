"""Recording and alert rules, by promtool: they parse, each alert fires on what it is for, names the culprit, and keeps
quiet otherwise.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s import known_metrics
from tests.k8s.manifests import K8S
from tests.k8s.prometheus import promtool

RULES = yaml.safe_load((K8S / "components" / "monitoring" / "rules.yaml").read_text())["spec"]
CASES = yaml.load(
    (Path(__file__).parent / "rules" / "cases.yaml").read_text(), yaml.BaseLoader
)  # 0x30 is thirty zeros, not 48
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule}


def without_annotations(rules: dict[str, Any]) -> dict[str, Any]:
    """promtool compares rendered texts exactly; this test compares only which alert fires for which labels."""
    groups = [
        {
            **group,
            "rules": [{key: value for key, value in rule.items() if key != "annotations"} for rule in group["rules"]],
        }
        for group in rules["groups"]
    ]
    return {"groups": groups}


def promtool_test(case: dict[str, Any]) -> dict[str, Any]:
    """promtool's words for a case."""
    fires = case.get("fires", {})
    alerts = [
        {
            "eval_time": case["at"],
            "alertname": alert,
            "exp_alerts": [{"exp_labels": fires[alert]}] if alert in fires else [],
        }
        for alert in ALERTS
    ]
    values = [
        {"expr": series, "eval_time": case["at"], "exp_samples": [{"labels": series, "value": float(value)}]}
        for series, value in case.get("values", {}).items()
    ]
    jobs = () if "SoftpromptAbsent" in fires else ("trainer", "inference")
    targets = {f'up{{job="{job}",namespace="softprompt"}}': "1x1000" for job in jobs}
    series = [{"series": name, "values": values} for name, values in {**targets, **case["series"]}.items()]
    return {
        "name": case["about"],
        "interval": "1m",
        "input_series": series,
        "alert_rule_test": alerts,
        "promql_expr_test": values,
    }


def run(folder: Path, rules: dict[str, Any], cases: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    """promtool's result for all cases. Cases of hours are evaluated less often, because each round costs promtool
    milliseconds; their times are multiples of the interval.
    """
    (folder / "rules.yaml").write_text(yaml.safe_dump(without_annotations(rules)))
    files = []
    for minutes in sorted({evaluation_minutes(case) for case in cases}):
        some = [promtool_test(case) for case in cases if evaluation_minutes(case) == minutes]
        tests = {"rule_files": ["rules.yaml"], "evaluation_interval": f"{minutes}m", "tests": some}
        files.append(folder / f"tests-{minutes}.yaml")
        files[-1].write_text(json.dumps(tests))  # JSON is YAML, and written faster
    return promtool("test", "rules", *files)


def evaluation_minutes(case: dict[str, Any]) -> int:
    """The time between two evaluations: short if the case fires an alert whose own time could not be distinguished."""
    at = minutes_of(case["at"])
    waits = [minutes_of(ALERTS[alert].get("for", "0m")) for alert in case.get("fires", {})]
    return 3 if at > 60 and at % 3 == 0 and not any(0 < wait < 15 for wait in waits) else 1


def minutes_of(duration: str) -> int:
    """Of 15m or 3h."""
    return int(duration[:-1]) * {"m": 1, "h": 60}[duration[-1]]


def test_they_parse(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES))
    done = promtool("check", "rules", tmp_path / "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{sum(len(group['rules']) for group in RULES['groups'])} rules found" in done.stdout


def test_alerts_fire_on_what_they_are_for_and_on_nothing_else(tmp_path: Path) -> None:
    done = run(tmp_path, RULES, CASES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_rule_that_never_fires_would_be_found(tmp_path: Path) -> None:
    broken = yaml.safe_load(yaml.safe_dump(RULES).replace("SoftpromptAliasBehind", "SoftpromptAliasAhead"))
    assert (
        run(tmp_path, broken, [case for case in CASES if "SoftpromptAliasBehind" in case.get("fires", {})]).returncode
        != 0
    )


def test_every_alert_is_seen_firing() -> None:
    assert {alert for case in CASES for alert in case.get("fires", {})} == ALERTS.keys()


@pytest.mark.parametrize("about", [case["about"] for case in CASES])
def test_cases_use_series_that_the_services_export(about: str) -> None:
    case = next(case for case in CASES if case["about"] == about)
    assert not {name for series in case["series"] for name in known_metrics.unknown_in(series)}


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ('softprompt_trainer_jobs{state="WAITING"} > 0', "no state=WAITING"),
        (
            'increase(softprompt_inference_version_load_failures_total{reason!~"unavailable|basemodel"}[5m])',
            "no reason=basemodel",
        ),
        ('softprompt_trainer_workers{phase="ready"}', "no label phase"),
        ('rate(grpc_server_handled_total{grpc_code=~"INTERNAL|DATA_LOSS"}[5m])', "no grpc_code=DATA_LOSS"),
        ('increase(softprompt_trainer_workers_ended_total{reason="lost"}[30m]) > 3', ""),
    ],
)
def test_a_selector_that_no_service_exports_is_found(expression: str, problem: str) -> None:
    found = list(known_metrics.selector_problems(expression))
    assert [problem] == [text[-len(problem) :] for text in found] if problem else found == []
