"""What clients and servers of commands' streams agree upon, without I/O.

`websocket` is the channels in messages, `terminal` sizes, `negotiation` which protocol a request leads to.
"""
