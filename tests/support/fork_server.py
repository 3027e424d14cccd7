"""A process that has imported everything and forks: the programs of `support.programs` start in milliseconds.

It has a single thread and computes nothing, so forks of it are as good as new processes. Each request holds a program,
its arguments and its environment; a keeper between server and program waits for the program and says how it ended.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
import types
from typing import Any

import torch

PRELOADED = (
    "torch.distributed",
    "portrait360.cli.commands",
    "portrait360.cli.main",
    "portrait360.photos.job",
    "portrait360.synthetic.job",
    "portrait360.training.loop",
    "support.fake_portraits",
    "support.fake_worker",
    "support.presets",
)


def _reap(options: int) -> None:
    """Collect keepers that have ended; all of them with options 0."""
    try:
        while os.waitpid(-1, options)[0]:
            pass
    except ChildProcessError:
        pass


def _keep(life: socket.socket) -> bool:
    """Fork once more. True in the program; the keeper says its process id and its end, and is gone."""
    pid = os.fork()
    if pid == 0:
        return True
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    life.sendall(b"%d\n" % pid)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        life.sendall(b"%d\n" % status)
    finally:
        os._exit(0)


def _become(request: dict[str, Any]) -> None:
    """Take on what the program was given."""
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[:] = ["-c", *request["arguments"]]
    signal.signal(signal.SIGINT, signal.default_int_handler)


def serve(control: socket.socket) -> str:
    """Answer requests until the other side hangs up. Returns in the forks: the code to run."""
    for name in PRELOADED:
        importlib.import_module(name)
    torch.optim.Adam([torch.zeros(1)])  # the first optimizer of a process imports torch's compiler, for seconds
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # forks neither copy nor search what is imported
    while True:
        message, handles, _, _ = socket.recv_fds(control, 1 << 20, 3)
        _reap(os.WNOHANG)
        if not message:
            _reap(0)
            sys.exit()
        if os.fork() == 0:
            break
        for handle in handles:
            os.close(handle)

    # In the fork: standard output and error are those of the request.
    control.close()
    out, error, life = handles
    os.dup2(out, 1)
    os.dup2(error, 2)
    os.close(out)
    os.close(error)
    with socket.socket(fileno=life) as connection:
        _keep(connection)
    request = json.loads(message)
    _become(request)
    return request["code"]


if __name__ == "__main__":
    program = serve(socket.socket(fileno=int(sys.argv[1])))
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(program, "<program>", "exec"), main.__dict__)
