"""Tests that `make test-fast` leaves out: they start processes or servers, or take seconds of processor time.

`conftest` gives them the marker `slow`, in addition to tests that have the marker themselves.
"""

from __future__ import annotations

from pathlib import Path

import pytest

SERVICES = ("inference_service", "trainer_service")
"""Folders whose own files start the service that they name; folders below test its parts."""

FOLDERS = ("benchmarks", "k8s", "packaging", "softprompt/gateway", "softprompt/router", "trainer_service/cluster")

FILES = frozenset(
    {
        "fuzz/test_fuzz.py",
        "inference_service/engine/guide/test_guided.py",
        "inference_service/engine/guide/test_limits.py",
        "inference_service/engine/kv/test_clean_rows.py",
        "inference_service/engine/run/test_paged.py",
        "inference_service/engine/test_correctness.py",
        "inference_service/engine/test_step_budget.py",
        "shared/kernels/test_build.py",
        "shared/kernels/test_instruction_sets.py",
        "shared/kernels/test_settings.py",
        "shared/model/test_hub_hangs.py",
        "shared/process/test_compute_thread.py",
        "shared/process/test_container_limits.py",
        "shared/prompt/test_damaged_blobs.py",
        "shared/rpc/test_relay.py",
        "shared/rpc/test_shared_limits.py",
        "shared/security/test_walk_through.py",
        "shared/store/test_crashes.py",
        "shared/store/test_maintenance.py",
        "simulation/test_simulation.py",
        "softprompt/cli/test_addresses.py",
        "softprompt/cli/test_chat_cli.py",
        "softprompt/cli/test_cli.py",
        "softprompt/cli/test_data_cli.py",
        "softprompt/cli/test_data_files_cli.py",
        "softprompt/cli/test_datasets_cli.py",
        "softprompt/cli/test_doctor_cli.py",
        "softprompt/cli/test_generate_file_cli.py",
        "softprompt/cli/test_help_cli.py",
        "softprompt/cli/test_prompts_cli.py",
        "softprompt/cli/test_surroundings.py",
        "softprompt/cli/test_terminal.py",
        "softprompt/client/test_arguments.py",
        "softprompt/client/test_async_client.py",
        "softprompt/client/test_retraining.py",
        "softprompt/client/test_security.py",
        "softprompt/client/test_tuning_client.py",
        "softprompt/client/test_verdict.py",
        "softprompt/client/test_watch_interruptions.py",
        "softprompt/demo/test_demo.py",
        "softprompt/local/test_local.py",
        "softprompt/report/test_report.py",
        "softprompt/routing/test_directory.py",
        "softprompt/test_examples_in_docs.py",
        "softprompt/test_hub_models.py",
        "softprompt/test_models.py",
        "softprompt/test_portable.py",
        "softprompt/test_promotion.py",
        "softprompt/tracking/test_tracking.py",
        "test_architectures.py",
        "test_end_to_end.py",
        "test_golden_records.py",
        "test_interchange.py",
        "test_quantised_models.py",
        "test_trained_prompt_is_served.py",
        "trainer_service/database/test_database_hangs.py",
        "trainer_service/database/test_move.py",
        "trainer_service/datasets/test_csv_upload.py",
        "trainer_service/datasets/test_data_end_to_end.py",
        "trainer_service/datasets/test_repeated_uploads.py",
        "trainer_service/datasets/test_tenant_datasets.py",
        "trainer_service/dispatch/test_broken_models.py",
        "trainer_service/dispatch/test_deadlines.py",
        "trainer_service/dispatch/test_estimate.py",
        "trainer_service/dispatch/test_faults.py",
        "trainer_service/dispatch/test_hung_stops.py",
        "trainer_service/dispatch/test_leases.py",
        "trainer_service/dispatch/test_manager.py",
        "trainer_service/dispatch/test_publication_faults.py",
        "trainer_service/dispatch/test_replicas.py",
        "trainer_service/dispatch/test_storage_faults.py",
        "trainer_service/dispatch/test_supervisor.py",
        "trainer_service/dispatch/test_worker_limits.py",
        "trainer_service/jobs/store/test_worker_slots.py",
        "trainer_service/jobs/test_memory_estimate.py",
        "trainer_service/jobs/test_transitions.py",
        "trainer_service/maintenance/test_retention_races.py",
        "trainer_service/maintenance/test_retention_rounds.py",
        "trainer_service/publish/test_alias_claim.py",
        "trainer_service/publish/test_publish_audit.py",
        "trainer_service/publish/test_publish_fencing.py",
        "trainer_service/publish/test_publisher.py",
        "trainer_service/training/attention/test_several_devices.py",
        "trainer_service/training/distillation/test_self_study.py",
        "trainer_service/training/test_budget.py",
        "trainer_service/training/test_cohort.py",
        "trainer_service/training/test_cohort_failures.py",
        "trainer_service/training/test_job_options.py",
        "trainer_service/training/test_search.py",
        "trainer_service/training/test_true_numbers.py",
        "trainer_service/usage/test_usage_calls.py",
        "trainer_service/usage/test_usage_under_kills.py",
        "trainer_service/webhooks/test_deliveries.py",
        "trainer_service/webhooks/test_webhook_calls.py",
    }
)

PARAMETERS = frozenset({"postgresql", "object"})
"""Fixture parameters that start a database server, or a server of an object store."""

_ROOT = Path(__file__).parent


def is_slow(item: pytest.Item) -> bool:
    """Whether a collected test belongs to one of the lists above."""
    parameters = (
        item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
    )
    return has_only_slow_tests(item.path) or any(isinstance(value, str) and value in PARAMETERS for value in parameters)


def has_only_slow_tests(path: Path) -> bool:
    """Whether all tests of a file, or of a folder with those below, are slow by the lists above."""
    if not path.is_relative_to(_ROOT):
        return False
    name = path.relative_to(_ROOT).as_posix()
    in_folders = f"{name}/".startswith(tuple(f"{folder}/" for folder in FOLDERS))
    return in_folders or name in FILES or (path.name.startswith("test_") and name.rpartition("/")[0] in SERVICES)


def leaves_out_slow_tests(markers: str) -> bool:
    """Whether an expression of `-m` deselects every slow test: it joins conditions by `and`, and one is `not slow`."""
    return not {"or", "("} & set(markers.replace("(", " ( ").split()) and "not slow" in markers.split(" and ")
