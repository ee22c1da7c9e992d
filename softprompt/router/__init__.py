"""`softprompt router`: GenerationService for several base models at one address (`docs/routing.md`).

Only the process is here: `server` starts and drains it, `servicer` takes each call as bytes and gives it to
`softprompt.routing`, `metrics` are its series, `settings` its environment. It keeps nothing: what it knows of replicas
and prompts is read from the prompt store. It passes tokens on and checks none, and never holds a model.
"""
