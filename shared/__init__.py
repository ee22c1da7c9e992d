"""What both services and the client share.

`values` are the facts, `wire` their conversion to messages, `store` the prompts and `prompt` the bytes of a version,
`text` and `model` turn inputs into token ids and load the frozen model, `kernels` make it faster on a CPU, `rpc` and
`security` are the server and who may call it, `process` is a service's life. `errors`, `location`, `names`,
`config` and `log` are used everywhere. Imports no service and no client.
"""
