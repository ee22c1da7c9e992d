"""A report with everything in it, also with texts that would do harm in a page or a spreadsheet."""

from __future__ import annotations

from prompttuning.v1 import common_pb2, tuning_pb2

from tests.softprompt.fakes import succeeded_job

HARM = '<script>window.harmed = true</script><img src="http://127.0.0.1:9/x" onerror="window.harmed = true">'
FORMULA = '=HYPERLINK("http://127.0.0.1:9","x")'


def full_report(name: str = "tuningJobs/job1") -> tuning_pb2.JobReport:
    job = succeeded_job()
    job.name = name
    job.effective_spec.CopyFrom(job.spec)
    job.effective_spec.hyperparameters.num_steps = 40
    job.effective_spec.hyperparameters.learning_rate = 0.01 + len(name) / 1000
    job.effective_spec.hyperparameters.metric = tuning_pb2.METRIC_ACCURACY
    job.effective_spec.labels.extend(["good", HARM])
    job.result.metrics["accuracy"], job.result.current_metrics["loss"] = 0.75, 2
    job.result.comparisons.add(
        rival="current_version", metric="loss", value=1.25, rival_value=2, difference=0.75, low=0.5, high=1, beats=True
    )
    job.result.nearest_tokens.add(text=HARM, cosine=0.25)
    report = tuning_pb2.JobReport(
        job=job, num_answers_left_out=3, missing=["texts were generated for 11 of 12 examples"]
    )
    for step in range(1, 41):
        report.training.add(step=step, loss=3.0 / step, learning_rate=0.01, grad_norm=1.0)
    for step in (0, 10, 20, 30, 40):
        metrics = {"loss": 3.5 - step / 20, "accuracy": step / 50}
        report.evaluations.add(step=step, metrics=metrics, is_best=step == 40)
    for line in range(1, 13):
        answer = report.answers.add(line=line, input=f"{HARM} {line}", reference=FORMULA if line == 1 else "good")
        answer.tuned.text, answer.tuned.loss, answer.tuned.correct = "good", line / 10, line > 2
        answer.current.text, answer.current.loss, answer.current.correct = "good", 1.0, line != 5
        answer.bare.text, answer.bare.loss = "\tbad", 2.0
        answer.instructed.loss = 1.5
        answer.few_shot.text, answer.few_shot.loss, answer.few_shot.correct = "-1+1", 0.2, False
    report.confusion.add(expected="good", chosen="good", count=10)
    report.confusion.add(expected=HARM, chosen="good", count=2)
    report.lineage.dataset = "datasets/sha256-" + "a" * 64
    report.lineage.init.method = tuning_pb2.PromptInit.METHOD_TEXT
    report.lineage.init.text = HARM
    report.lineage.base_model.CopyFrom(common_pb2.BaseModel(id="tiny", fingerprint="sha256:" + "1" * 64))
    report.lineage.software_version = "0.1.0"
    report.cost.worker_time.FromSeconds(90)
    report.cost.num_steps, report.cost.num_tokens = 40, 12345
    return report
