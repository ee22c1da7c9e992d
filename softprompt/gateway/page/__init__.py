"""The web page: static files at `/`, and JSON for them below `/api/`.

It knows the client and the gateway's way to read requests and to report errors. It keeps no state: the browser has the
view in its address, and the services have everything else. Answers stream from `/v1/`, as for any other program.
"""
