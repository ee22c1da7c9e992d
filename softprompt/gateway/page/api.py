"""The page's endpoints: method, path and handler."""

from __future__ import annotations

from softprompt.gateway.endpoint import Endpoint
from softprompt.gateway.page import data, jobs, prompts

PAGE_API: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", "/api/preview", data.preview),
    ("POST", "/api/check", jobs.check_job),
    ("GET", "/api/jobs", jobs.list_jobs),
    ("POST", "/api/jobs", jobs.create_job),
    ("GET", "/api/jobs/{job}", jobs.get_job),
    ("GET", "/api/jobs/{job}/events", jobs.job_events),
    ("GET", "/api/jobs/{job}/report", jobs.job_report),
    ("POST", "/api/jobs/{job}/continue", jobs.continue_job),
    ("POST", "/api/jobs/{job}/{action}", jobs.act_on_job),
    ("GET", "/api/prompts", prompts.list_prompts),
    ("GET", "/api/prompts/{prompt}", prompts.get_prompt),
    ("POST", "/api/prompts/{prompt}/aliases/{alias}", prompts.set_alias),
    ("GET", "/api/status", prompts.status),
)
