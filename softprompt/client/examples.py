"""Examples in the docstrings of `Client`, which a test runs against real services, with a prompt `tone`."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, str] = {
    "upload_dataset": """
        >>> stored = client.upload_dataset([{"input": "a lamp", "output": "It glows."}])
        >>> stored.num_examples
        1
    """,
    "validate_job": """
        >>> examples = [{"input": f"item {number}", "output": f"Number {number}!"} for number in range(8)]
        >>> check = client.validate_job(TuningSpec("tone", examples))
        >>> check.job.dataset_statistics.num_train
        7
    """,
    "tune": """
        >>> examples = [{"input": f"item {number}", "output": f"Number {number}!"} for number in range(8)]
        >>> spec = TuningSpec("tone", examples, hyperparameters=Hyperparameters(num_steps=2, num_virtual_tokens=4))
        >>> job = client.tune(spec, on_event=lambda event: None)
        >>> print(job.state, job.result.published)
        SUCCEEDED True
        >>> job.history().rows()[-1]["step"]
        2
    """,
    "list_jobs": """
        >>> newest, *_ = client.list_jobs(states=[JobState.SUCCEEDED], prompt="tone", limit=1)
        >>> client.get_job(newest.name).spec.prompt
        'tone'
    """,
    "watch_job": """
        >>> newest, *_ = client.list_jobs(prompt="tone", limit=1)
        >>> [event.job.state.value for event in client.watch_job(newest.name) if isinstance(event, StateChanged)][-1]
        'SUCCEEDED'
    """,
    "generate": """
        >>> answer = client.generate("a lamp", prompt="tone", temperature=0.0, max_new_tokens=4)
        >>> answer.end.output_tokens <= 4
        True
        >>> client.generate("a lamp", prompt="tone", max_tokens=4)
        Traceback (most recent call last):
        ...
        shared.errors.InvalidInput: max_tokens: is not a sampling parameter; do you mean 'max_new_tokens'?
    """,
    "stream": """
        >>> stream = client.stream("a lamp", prompt="tone", max_new_tokens=4)
        >>> text = "".join(delta.text for delta in stream)
        >>> stream.start.version.startswith("prompts/tone/versions/")
        True
    """,
    "generate_many": """
        >>> outcomes = list(client.generate_many(["a lamp", "a pen", ""], prompt="tone", max_new_tokens=2))
        >>> [outcome.index for outcome in outcomes]
        [0, 1, 2]
        >>> [outcome.error is None for outcome in outcomes[:2]]
        [True, True]
    """,
    "chat": """
        >>> chat = client.chat(max_new_tokens=2, ignore_eos=True)
        >>> first, second = chat.send("Hello"), chat.send("And now?")
        >>> [turn.role for turn in chat.messages][:2]
        ['user', 'assistant']
    """,
    "score": """
        >>> scores = client.score("a lamp", prompt="tone", candidates=["good", "bad"])
        >>> round(sum(score.probability for score in scores.scores), 3)
        1.0
    """,
    "classify": """
        >>> client.classify("a lamp", prompt="tone", labels=["good", "bad"]).candidate in ("good", "bad")
        True
    """,
    "count_tokens": """
        >>> client.count_tokens("a lamp", prompt="tone").virtual_tokens
        4
    """,
    "service_info": """
        >>> [model.id for model in client.service_info().base_models]
        ['tiny']
    """,
    "list_prompts": """
        >>> [prompt.name for prompt in client.list_prompts()]
        ['prompts/tone']
    """,
    "get_version": """
        >>> client.get_version("tone@default").num_virtual_tokens
        4
    """,
    "set_alias": """
        >>> alias = client.set_alias("tone", "canary", [AliasTarget(1, weight=1.0)])
        >>> [target.version for target in alias.targets]
        [1]
    """,
    "wait_until_served": """
        >>> print(client.wait_until_served("tone@1").state)
        LOADED
    """,
}
